// The button for the theme. The entry `theme.js` applies what it stores, before the page is painted.

const root = document.documentElement;
const button = document.getElementById("theme");

const isDark = () =>
  (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

const choose = (theme) => {
  root.dataset.theme = theme;
  try {
    localStorage.setItem("signoff-theme", theme);
  } catch {
    // the choice lasts for this page
  }
};

if (button) {
  button.hidden = false;
  button.addEventListener("click", () => choose(isDark() ? "light" : "dark"));
}
