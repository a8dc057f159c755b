// Undo: the bar counts down, and goes when it is too late.

const left = document.querySelector(".undo-left");
if (left) {
  const countdown = setInterval(() => {
    left.value -= 1;
    if (left.value > 0) return;
    clearInterval(countdown);
    left.closest(".undo").remove();
  }, 1000);
}
