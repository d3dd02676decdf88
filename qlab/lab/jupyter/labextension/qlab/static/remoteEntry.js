// What JupyterLab and ipywidgets leave out for a screen reader and the keyboard: the names of sliders, of groups of answers, of pictures.
// And a lecturer's own cells, those with the tag speaker: hidden from a reader until View > Speaker Notes shows them.
//
// JupyterLab loads this file as it is: there is nothing to build. Whatever appears on the page is looked at a moment later, once. Nothing
// of JupyterLab's own is changed, and nothing is written into the notebook.

(() => {
  const PAUSE_MS = 100; // a page that is being drawn changes many times; once it rests for so long, it is looked at
  const text = node => (node ? node.textContent.replace(/\s+/g, ' ').trim() : '');

  function set(node, name, value) { // only what differs: writing would make the page change again
    if (value && node.getAttribute(name) !== value) {
      node.setAttribute(name, value);
    }
  }

  // "bits 4": the label and the value of one control
  function setting(control) {
    const chosen = control.querySelector('input:checked');
    const value =
      text(control.querySelector('.widget-readout')) ||
      text(control.querySelector('select')?.selectedOptions[0]) ||
      text(control.querySelector('.widget-toggle-button.mod-active')) ||
      (control.querySelector('[type=checkbox]') ? (chosen ? 'on' : 'off') : text(chosen?.parentElement));
    const label = text(control.querySelector('.widget-label')) || text(control.querySelector('label'));
    return `${label} ${value}`.trim();
  }

  function nameSliders() {
    for (const slider of document.querySelectorAll('.widget-slider')) {
      const name = text(slider.querySelector('.widget-label')) || 'slider';
      const readout = slider.querySelector('.widget-readout');
      const handles = slider.querySelectorAll('.noUi-handle');
      handles.forEach((handle, i) => {
        set(handle, 'aria-label', handles.length === 1 ? name : `${name}, ${i ? 'to' : 'from'}`);
        if (handles.length === 1) {
          set(handle, 'aria-valuetext', text(readout)); // "channel" and not "1"
        }
      });
      if (readout?.isContentEditable) {
        set(readout, 'role', 'textbox');
        set(readout, 'aria-label', `${name}, value`);
      }
    }
  }

  let groups = 0;

  function groupAnswers() {
    for (const question of document.querySelectorAll('.qlab-question')) {
      set(question, 'aria-live', 'polite'); // what is said after an answer is read out
    }
    for (const radio of document.querySelectorAll('.widget-radio')) {
      const inputs = [...radio.querySelectorAll('input[type=radio]')];
      const name = inputs.find(input => input.name)?.name || `qlab-${++groups}`;
      inputs.forEach(input => set(input, 'name', name)); // one name, one group: the arrow keys stay in it, and tab leaves it
      const question = radio.closest('.qlab-question') && radio.previousElementSibling;
      const group = radio.querySelector('.widget-radio-box');
      set(group, 'role', 'radiogroup');
      set(group, 'aria-label', text(question) || text(radio.querySelector('.widget-label')));
    }
  }

  // A key that an answer or a control uses is not the notebook's as well, which would walk to the next cell. JupyterLab leaves a key to an
  // element that has this attribute; it would then leave it every key, saving included, so the attribute follows the key.
  const KEYS = ['ArrowUp', 'ArrowDown', 'ArrowLeft', 'ArrowRight', 'Home', 'End', 'PageUp', 'PageDown', 'Enter', ' '];

  function keepKeys(event) {
    const { target } = event;
    if (target.matches?.(':is(.qlab-question, .qlab-live) :is(input, button, select, .noUi-handle)')) {
      const plain = !(event.ctrlKey || event.metaKey || event.altKey || event.shiftKey);
      target.toggleAttribute('data-lm-suppress-shortcuts', plain && KEYS.includes(event.key));
    }
  }

  function describeLivePictures() {
    for (const box of document.querySelectorAll('.qlab-live')) {
      const settings = [...box.querySelectorAll('.widget-inline-hbox')].map(setting).filter(Boolean).join(', ');
      const caption = text(box.querySelector('.qlab-text'));
      const picture = box.querySelector('img.qlab-picture, .qlab-picture img');
      if (picture) {
        set(picture, 'alt', [settings ? `Live figure: ${settings}` : 'Live figure', caption].filter(Boolean).join('. '));
      }
    }
  }

  // The alternative text of a stored picture is in its output's metadata, which JupyterLab does not read.
  function describeStoredPictures(app) {
    if (!document.querySelector('.jp-RenderedImage img:not([alt]), .jp-RenderedImage img[alt=""]')) {
      return;
    }
    for (const panel of app.shell.widgets('main')) {
      for (const cell of panel.content?.widgets ?? []) {
        const area = cell.outputArea;
        (area?.widgets ?? []).forEach((output, i) => {
          const picture = output.node.querySelector('.jp-RenderedImage img');
          const model = area.model.get(i);
          if (picture && model && !picture.getAttribute('alt')) {
            const given = Object.values(model.metadata).find(value => value?.alt)?.alt;
            set(picture, 'alt', given || String(model.data['text/plain'] ?? 'picture').replace(/^<|>$/g, ''));
          }
        });
      }
    }
  }

  // Cells of the tag are hidden as those below a collapsed heading are, so that the page's own measures and keys know of it.
  const NOTES = 'qlab-speaker-notes';
  const notesShown = () => localStorage.getItem(NOTES) === 'shown';

  function speakerCells(app) {
    const panels = [...app.shell.widgets('main')];
    return panels.flatMap(panel => panel.content?.widgets ?? []).filter(cell => cell.model?.getMetadata?.('tags')?.includes?.('speaker'));
  }

  function hideNotes(app) {
    if (!notesShown()) {
      speakerCells(app).forEach(cell => cell.setHidden(true));
    }
  }

  function addNotesCommand(app) {
    app.commands.addCommand('qlab:speaker-notes', { // the View menu has it from schemas/qlab/access.json
      label: 'Speaker Notes',
      isToggled: notesShown,
      execute: () => {
        localStorage.setItem(NOTES, notesShown() ? 'hidden' : 'shown');
        speakerCells(app).forEach(cell => cell.setHidden(!notesShown()));
      }
    });
  }

  function activate(app) {
    let waiting = null;
    function look() {
      waiting = null;
      for (const step of [nameSliders, groupAnswers, describeLivePictures, () => describeStoredPictures(app), () => hideNotes(app)]) {
        try {
          step();
        } catch (error) { // a later JupyterLab may be built otherwise: the page is then what it was without this
          console.debug('qlab:', error);
        }
      }
    }
    new MutationObserver(() => {
      waiting ??= setTimeout(look, PAUSE_MS);
    }).observe(document.body, { childList: true, subtree: true, characterData: true });
    addNotesCommand(app);
    window.addEventListener('keydown', keepKeys, true); // before JupyterLab, which listens to the document
    look();
  }

  const plugin = { id: 'qlab:access', description: 'Names for sliders, answers and pictures; speaker notes hidden or shown.', autoStart: true, activate };
  window._JUPYTERLAB = window._JUPYTERLAB || {};
  window._JUPYTERLAB.qlab = { init: () => {}, get: async () => () => ({ __esModule: true, default: plugin }) };
})();
