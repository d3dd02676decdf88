// Until the figure is there: the page's title, why it takes so long, and from the third second on for how many seconds it has.
(() => {
  const { title, why } = window.qlabWait, start = performance.now();
  const room = document.querySelector('#loading');
  const line = room.appendChild(document.createElement('p'));
  document.title = document.querySelector('#loading_text').textContent = title;
  line.textContent = `${why}.`;
  window.voila_process = () => {}; // it would write "Executing 1 of 2" over the title

  const clock = setInterval(() => {
    const seconds = Math.floor((performance.now() - start) / 1000);
    if (!room.isConnected) {
      clearInterval(clock);
    } else if (seconds >= 3) {
      line.textContent = `${why}: ${seconds} s so far.`;
    }
  }, 200);
})();
