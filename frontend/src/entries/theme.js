// The theme that this browser remembers, before anything is painted; without one, that of the system.

(() => {
  try {
    const theme = localStorage.getItem("signoff-theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // the browser keeps nothing for this site
  }
})();
