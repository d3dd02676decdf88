// The keys of `qlab demo`, and how much its controls and words are enlarged: as the window is, so that the last row can read them.
(() => {
  const WIDTH = 900, HEIGHT = 506; // of the window, in pixels, in which words and controls have a page's usual size
  let inHand = null;               // the slider that was moved last
  let touched = false;             // has anybody pressed a key or a button yet?

  function zoom() {
    const factor = Math.min(innerWidth / WIDTH, innerHeight / HEIGHT);
    document.documentElement.style.setProperty('--zoom', factor.toFixed(3));
  }

  function current() { // the figure that has the focus, or the one that fills most of the window
    const focused = document.activeElement?.closest('.qlab-demo');
    const middle = figure => Math.abs(figure.getBoundingClientRect().top);
    return focused ?? [...document.querySelectorAll('.qlab-demo')].sort((a, b) => middle(a) - middle(b))[0];
  }

  function slider() { // the one in hand, or the first of the figure that is seen
    return inHand?.isConnected ? inHand : current()?.querySelector('.noUi-handle');
  }

  function onKey(event) {
    const { key, target } = event;
    touched = true;
    if (event.ctrlKey || event.metaKey || event.altKey || target.matches('input[type=text], input[type=number], textarea, [contenteditable=true]')) {
      return;
    }
    if (key === 's') {
      current()?.querySelector('.qlab-still')?.click();
    } else if (key === 'f') {
      document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen();
    } else if (['ArrowLeft', 'ArrowRight'].includes(key) && target.matches('.widget-toggle-button')) {
      const next = key === 'ArrowRight' ? target.nextElementSibling : target.previousElementSibling;
      next?.click();
      next?.focus();
    } else if (key.startsWith('Arrow') && target === document.body && slider()) {
      const handle = slider();
      handle.focus();
      handle.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true }));
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  function arrange() {
    for (const value of document.querySelectorAll('.qlab-demo .widget-readout[contenteditable]:not([tabindex="-1"])')) {
      value.tabIndex = -1; // Tab goes from control to control; a click still lets a value be typed in
    }
    const first = document.querySelector('.qlab-demo'), active = document.activeElement;
    if (!touched && first && !active?.matches('.noUi-handle')) { // a slider may be drawn after the buttons beside it
      const handle = first.querySelector('.noUi-handle');
      (handle ?? (active === document.body ? first.querySelector('select, input, button') : null))?.focus();
    }
  }

  new MutationObserver(arrange).observe(document.body, { childList: true, subtree: true, attributes: true, attributeFilter: ['style'] });
  addEventListener('focusin', event => {
    if (event.target.matches('.noUi-handle')) {
      inHand = event.target;
    }
  });
  addEventListener('pointerdown', () => { touched = true; }, true);
  addEventListener('keydown', onKey, true);
  addEventListener('resize', zoom);
  zoom();
})();
