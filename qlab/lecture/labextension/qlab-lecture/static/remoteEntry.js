// The slides of a lecture's copy of a notebook. jupyterlab-slideshow clears everything but the notebook off the screen; this turns the slides,
// by what qlab/lecture/live.py has written into the cells: at = [slide, step, part, scale, height, first row, last row].
//
// JupyterLab loads this file as it is: there is nothing to build. Nothing is written into the notebook.

(() => {
  const KEY = 'qlab_lecture';
  const [WIDTH, HEIGHT] = [840, 472.5]; // the stage that qlab/lecture counts with
  const FORWARD = ['ArrowRight', 'ArrowDown', 'PageDown', ' ', 'n'];
  const BACK = ['ArrowLeft', 'ArrowUp', 'PageUp', 'Backspace', 'p'];
  const ALWAYS = ['PageDown', 'PageUp', 'Escape']; // a remote control's keys, wherever the cursor is

  const style = document.createElement('link');
  style.rel = 'stylesheet';
  style.href = new URL('lecture.css', document.currentScript.src).href;
  document.head.append(style);

  const presenting = () => document.body.dataset.jpDeckMode === 'presenting';

  class Lecture {
    constructor(app, panel) {
      Object.assign(this, { app, panel, notebook: panel.content, slide: 0, step: 0 });
      const { titles } = panel.content.model.getMetadata(KEY);
      this.cells = panel.content.widgets.map(cell => ({ cell, at: cell.model.getMetadata(KEY)?.at ?? [] }));
      this.steps = titles.map((_, slide) => Math.max(0, ...this.cells.flatMap(({ at }) => at.filter(a => a[0] === slide).map(a => a[1]))));
      this.addBar(titles);
      window.addEventListener('keydown', event => this.key(event), true); // before JupyterLab and the slide show, which have keys of their own
      window.addEventListener('resize', () => this.show());
      panel.content.activeCellChanged.connect((_, cell) => cell?.node.classList.contains('qlab-off') && this.show());
      new ResizeObserver(() => this.fit()).observe(panel.content.viewportNode);
      new MutationObserver(() => this.fitLater()).observe(panel.content.viewportNode, { childList: true, subtree: true });
    }

    addBar(titles) {
      const bar = document.createElement('div');
      bar.className = 'qlab-bar';
      bar.innerHTML = '<span role="status"></span><button title="back">&lsaquo;</button><select title="all slides"></select>' +
        '<button title="on">&rsaquo;</button>';
      const [said, back, list, on] = bar.children;
      titles.forEach((title, k) => list.append(new Option(`${k + 1} / ${titles.length}`, k), ''));
      [...list.options].forEach((option, k) => { option.label = `${k + 1} / ${titles.length}   ${titles[k].replace(/[$*`\\]/g, '')}`; });
      back.onclick = () => this.turn(-1);
      on.onclick = () => this.turn(1);
      list.onchange = () => { this.go(+list.value); list.blur(); };
      document.body.append(bar);
      Object.assign(this, { said, list });
    }

    key(event) {
      const { target, key } = event;
      if (!presenting() || event.ctrlKey || event.metaKey || event.altKey || event.key === 'Shift') {
        return;
      }
      if (key === 'Enter' && event.shiftKey) { // runs the cell, and stays on its slide
        this.stop(event);
        this.app.commands.execute('notebook:run-cell');
        return;
      }
      const typing = target.closest?.('.cm-content, textarea, select, [contenteditable=true], input:not([type=radio]):not([type=checkbox])');
      const control = target.closest?.('.noUi-handle, input, button, .widget-slider');
      if (!ALWAYS.includes(key) && (typing || (control && (key.startsWith('Arrow') || key === ' ' || key === 'Enter')))) {
        return;
      }
      if (key === 'Escape' && typing) {
        return; // JupyterLab leaves the editor
      }
      const move = {
        b: () => this.black(), '.': () => this.black(), l: () => this.point(), f: () => this.fill(), s: () => this.openNotes(),
        Home: () => this.go(0), End: () => this.go(this.steps.length - 1), Escape: () => this.leave(),
      }[key];
      if (move || FORWARD.includes(key) || BACK.includes(key)) {
        this.stop(event);
        move ? move() : this.turn(BACK.includes(key) || event.shiftKey ? -1 : 1);
      } else if (key.length === 1) {
        this.stop(event); // JupyterLab would cut a cell at x, and insert one at a
      }
    }

    stop(event) {
      event.preventDefault();
      event.stopImmediatePropagation();
    }

    turn(by) {
      const step = this.step + by;
      if (0 <= step && step <= this.steps[this.slide]) {
        this.go(this.slide, step);
      } else if (0 <= this.slide + by && this.slide + by < this.steps.length) {
        this.go(this.slide + by, by > 0 ? 0 : this.steps[this.slide + by]);
      }
    }

    go(slide, step = 0) {
      Object.assign(this, { slide, step });
      this.show();
    }

    show() {
      let last = 0;
      this.cells.forEach(({ cell, at }, k) => {
        const here = at.find(a => a[0] === this.slide && a[1] <= this.step);
        cell.node.classList.toggle('qlab-off', !here);
        for (const part of ['source', 'output']) {
          cell.node.classList.toggle(`qlab-${part}`, here?.[2] === part && cell.model.type === 'code');
        }
        if (here) {
          last = k;
          cell.node.style.setProperty('--scale', here[3]);
          cell.node.style.setProperty('--height', `${here[4]}px`);
          cell.node.querySelectorAll('.jp-OutputArea tr').forEach((row, n) => {
            row.hidden = here.length > 5 && n > 0 && (n <= here[5] || n > here[6]); // the first is the head
          });
          cell.node.dataset.kind = cell.model.getMetadata(KEY).heading ? `heading-${cell.model.getMetadata(KEY).heading}` : cell.model.type;
        }
      });
      this.notebook.activeCellIndex = last; // the slide show puts this cell's slide on the screen
      this.notebook.mode = 'command';
      this.list.value = this.slide;
      this.fit();
      this.panel.node.dataset.slide = `${this.slide}.${this.step}`;
    }

    fitLater() {
      clearTimeout(this.waiting);
      this.waiting = setTimeout(() => this.fit(), 50);
    }

    // The stage as large as the window; what is too large, for a cell prints now what it did not when the slides were made, becomes smaller,
    // a live figure's picture first. Nothing is cut.
    fit() {
      const stage = this.notebook.viewportNode;
      const zoom = Math.min(window.innerWidth / WIDTH, window.innerHeight / HEIGHT);
      const over = () => stage.scrollHeight - stage.clientHeight - 1;
      stage.style.setProperty('--stage', zoom);
      stage.style.removeProperty('--picture');
      let fit = 1;
      stage.style.setProperty('--fit', fit);
      const picture = stage.querySelector('.jp-Cell:not(.qlab-off) .qlab-picture');
      if (picture && over() > 0) {
        const { width, height } = picture.getBoundingClientRect();
        const left = Math.max(0.5, 1 - (over() + 3) * zoom / height);
        stage.style.setProperty('--picture', `${(left * width) / zoom}px`);
      }
      while (fit > 0.4 && over() > 0) {
        fit -= 0.03;
        stage.style.setProperty('--fit', fit);
      }
      stage.dataset.fit = fit.toFixed(2);
    }

    black() {
      const old = document.querySelector('.qlab-black');
      old ? old.remove() : document.body.append(Object.assign(document.createElement('div'), { className: 'qlab-black' }));
    }

    point() {
      const old = document.querySelector('.qlab-pointer');
      if (old) {
        old.remove();
        return;
      }
      const dot = Object.assign(document.createElement('div'), { className: 'qlab-pointer' });
      document.body.append(dot);
      document.addEventListener('pointermove', event => { dot.style.left = `${event.clientX}px`; dot.style.top = `${event.clientY}px`; });
    }

    fill() {
      document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen();
    }

    openNotes() {
      const { notes } = this.notebook.model.getMetadata(KEY);
      if (!notes) {
        this.said.textContent = 'this page has no notes';
        return;
      }
      const { baseUrl } = JSON.parse(document.getElementById('jupyter-config-data').textContent);
      window.open(`${baseUrl}files/${this.panel.context.path.replace(/[^/]*$/, notes)}`, 'qlab-notes', 'width=900,height=700');
    }

    leave() {
      this.app.commands.execute('deck:stop');
    }

    // One cell after the other, so that each slide shows its stored output until its turn has come.
    async run() {
      await this.panel.sessionContext.ready;
      const code = this.cells.map(({ cell }) => cell).filter(cell => cell.model.type === 'code');
      for (const [k, cell] of code.entries()) {
        this.said.textContent = `cell ${k + 1} of ${code.length} runs`;
        const reply = await cell.constructor.execute(cell, this.panel.sessionContext);
        if (reply && reply.content.status !== 'ok') {
          this.said.textContent = `cell ${k + 1} of ${code.length} failed`;
          return;
        }
      }
      this.said.textContent = '';
    }
  }

  async function begin(app, panel) {
    await panel.context.ready;
    if (!panel.content.model?.getMetadata(KEY)) {
      return;
    }
    await panel.revealed;
    await app.commands.execute('deck:start');
    const lecture = new Lecture(app, panel);
    lecture.go(0); // the other slides are drawn behind it
    await Promise.all(panel.content.widgets.map(cell => cell.ready));
    lecture.run();
  }

  function activate(app) {
    const seen = new WeakSet();
    const look = () => {
      const panel = app.shell.currentWidget;
      if (panel?.context && panel.content?.widgets && !seen.has(panel)) {
        seen.add(panel);
        begin(app, panel).catch(error => console.error('qlab:', error));
      }
    };
    app.shell.currentChanged?.connect(look);
    app.restored.then(look);
  }

  const plugin = { id: 'qlab-lecture:slides', description: 'Turns the slides of a lecture.', autoStart: true, activate };
  window._JUPYTERLAB = window._JUPYTERLAB || {};
  window._JUPYTERLAB['qlab-lecture'] = { init: () => {}, get: async () => () => ({ __esModule: true, default: plugin }) };
})();
