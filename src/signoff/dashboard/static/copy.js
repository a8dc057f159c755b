// Buttons that copy the text of an element; they are hidden where this script does not run.

for (const button of document.querySelectorAll("button[data-copy]")) {
  const text = button.textContent;
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = text), 2000);
  });
}
