// The slides of an export: reveal.js turns them, MathJax sets the formulas; here is what neither does: a check that nothing is cut, a pointer.

window.MathJax = {
  tex: { inlineMath: [['$', '$'], ['\\(', '\\)']], displayMath: [['$$', '$$']] },
  options: { enableMenu: false },
  startup: { typeset: false },
};

window.lecture = {
  async start() {
    Reveal.initialize({
      width: 840, height: 472.5, margin: 0, minScale: 0.1, maxScale: 20, center: false, hash: true, slideNumber: 'c/t',
      transition: 'none', controls: false, plugins: [RevealNotes],
      keyboard: { 38: 'prev', 40: 'next', 76: () => this.point() }, // the arrows up and down, L
    });
    await MathJax.startup.promise;
    await MathJax.typesetPromise();
    await Promise.all([...document.images].map(image => image.decode().catch(() => {})));
    Reveal.on('slidechanged', event => this.fit(event.currentSlide));
    this.fit(Reveal.getCurrentSlide());
    document.body.dataset.ready = 'yes';
  },

  // Letters differ between machines: what is too large for its slide here becomes smaller, and nothing is cut.
  fit(section) {
    const stage = section?.querySelector('.stage');
    if (!stage || !stage.clientHeight) {
      return;
    }
    for (const formula of stage.querySelectorAll('mjx-container[display="true"]')) {
      const svg = formula.querySelector('svg');
      const room = formula.parentElement.clientWidth;
      const width = svg.getBoundingClientRect().width / Reveal.getScale();
      if (width > room + 1) {
        formula.style.fontSize = `${(100 * room) / width}%`;
      }
    }
    for (let scale = 0.97; stage.scrollHeight > stage.clientHeight + 1 && scale > 0.3; scale -= 0.03) {
      stage.dataset.scale = scale.toFixed(2);
      for (const piece of stage.querySelectorAll('.piece')) {
        piece.dataset.zoom ??= piece.style.zoom || 1;
        piece.style.zoom = piece.dataset.zoom * scale;
      }
    }
  },

  point() {
    const old = document.querySelector('.pointer');
    if (old) {
      old.remove();
      return;
    }
    const dot = document.createElement('div');
    dot.className = 'pointer';
    dot.style.left = dot.style.top = '50%';
    document.body.append(dot);
    document.addEventListener('pointermove', event => {
      dot.style.left = `${event.clientX}px`;
      dot.style.top = `${event.clientY}px`;
    });
  },
};
