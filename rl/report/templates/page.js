"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const PAGE = 48;
  let order = [], visible = PAGE, opened = -1;

  // Text goes into the page as text only, never as markup.
  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }
  function show(image, number) {
    image.addEventListener("load", () => image.classList.toggle("small", Math.max(image.naturalWidth, image.naturalHeight) <= 128));
    image.decoding = "async";
    image.src = "data:image/webp;base64," + data.pictures[number];
    return image;
  }
  function picture(number, alt) {
    if (number === null || !data.pictures[number]) return make("p", "note", "no picture");
    const image = make("img");
    image.alt = alt;
    return show(image, number);
  }
  function source(number) {
    const image = picture(number, "the picture that the prompt is about");
    image.classList.add("source");
    return image;
  }
  // What a sample made: its picture, and below it, or in its place, what it wrote. asked: a picture for the place of one.
  function made(side, alt, asked) {
    if (!side.w) return picture(side.p, alt);
    const shown = side.p !== null ? picture(side.p, alt) : asked !== undefined ? source(asked) : null;
    const box = make("div", shown ? "made" : "made alone");
    if (shown) box.append(shown);
    box.append(...side.w.map((text) => make("p", "text", text)));
    return box;
  }
  const score = (value) => (value === null || value === undefined ? "none" : value.toFixed(3));
  const tone = (gain) => (gain > 0 ? "up" : gain < 0 ? "down" : "even");
  function gainText(before, after) {
    if (before === null || after === null) return "";
    return (after - before >= 0 ? "+" : "−") + Math.abs(after - before).toFixed(3);
  }

  for (const image of document.querySelectorAll("img[data-picture]")) {
    if (data.pictures[Number(image.dataset.picture)]) show(image, Number(image.dataset.picture));
  }
  if (!data.samples.length) return;

  const [left, right, sorting, kind, text] = ["left", "right", "order", "kind", "text"].map($);
  const kinds = [...new Set(data.samples.flatMap((sample) => [sample.set || null, sample.task, sample.tag]).filter((name) => name !== null))].sort();
  for (const name of kinds) {
    const option = make("option", "", name);
    option.value = name;
    kind.append(option);
  }
  $("tools").hidden = false;
  $("tools").addEventListener("submit", (event) => event.preventDefault());

  const sides = (number) => [data.samples[number].sides[left.value], data.samples[number].sides[right.value]];
  function gain(number) {
    const [before, after] = sides(number);
    return before.t === null || after.t === null ? null : after.t - before.t;
  }
  function choose() {
    const wanted = text.value.trim().toLowerCase();
    order = data.samples.map((_, number) => number).filter((number) => {
      const sample = data.samples[number];
      if (kind.value && ![sample.set, sample.task, sample.tag].includes(kind.value)) return false;
      const said = [sample.prompt, sample.id, ...sides(number).flatMap((side) => [...(side.why || []), ...(side.w || [])])].join(" ");
      return said.toLowerCase().includes(wanted);
    });
    const after = (number) => sides(number)[1].t;
    const last = (value) => (value === null ? Infinity : value);
    const by = {
      improved: (a, b) => last(gain(a) === null ? null : -gain(a)) - last(gain(b) === null ? null : -gain(b)),
      damaged: (a, b) => last(gain(a)) - last(gain(b)),
      worst: (a, b) => last(after(a)) - last(after(b)),
      best: (a, b) => last(after(a) === null ? null : -after(a)) - last(after(b) === null ? null : -after(b)),
      file: (a, b) => a - b,
    }[sorting.value];
    order.sort((a, b) => by(a, b) || a - b);
    visible = PAGE;
    draw();
  }
  function card(number) {
    const sample = data.samples[number], [before, after] = sides(number), alone = left.value === right.value;
    const button = make("button", "card");
    button.type = "button";
    button.dataset.number = number;
    const pair = make("div", "pair");
    if (sample.s !== undefined && (before.p !== null || after.p !== null)) pair.append(source(sample.s));
    if (!alone) pair.append(made(before, "", sample.s));
    pair.append(made(after, sample.prompt, sample.s));
    const scores = make("div", "scores");
    scores.append(make("span", "", alone ? score(after.t) : score(before.t) + " → " + score(after.t)));
    if (!alone) scores.append(make("b", tone(after.t - before.t), gainText(before.t, after.t)));
    button.append(pair, scores, make("p", "prompt", sample.prompt));
    button.addEventListener("click", () => open(number));
    return button;
  }
  function draw() {
    $("cards").replaceChildren(...order.slice(0, visible).map(card));
    $("count").textContent = order.length + " of " + data.samples.length + " samples";
    $("more").hidden = visible >= order.length;
  }
  $("more").addEventListener("click", () => {
    const from = visible;
    visible += PAGE;
    $("cards").append(...order.slice(from, visible).map(card));
    $("more").hidden = visible >= order.length;
  });
  for (const control of [left, right, sorting, kind]) control.addEventListener("change", choose);
  text.addEventListener("input", choose);

  const dialog = $("opened");
  function open(number) {
    opened = number;
    const sample = data.samples[number];
    const chosen = left.value === right.value ? [Number(right.value)] : [Number(left.value), Number(right.value)];
    const figures = chosen.map((place) => [made(sample.sides[place], sample.prompt), data.sides[place].label]);
    if (sample.s !== undefined) figures.unshift([source(sample.s), "source"]);
    $("opened-pictures").replaceChildren(...figures.map(([shown, label]) => {
      const figure = make("figure");
      figure.append(shown, make("figcaption", "", label));
      return figure;
    }));
    $("opened-prompt").textContent = sample.prompt;
    const head = make("tr");
    head.append(make("th", "", "reward"), ...chosen.map((place) => make("th", "num", data.sides[place].label)));
    $("opened-head").replaceChildren(head);
    const rows = [["total", chosen.map((place) => sample.sides[place].t), ""]];
    data.rewards.forEach((name, column) => {
      const why = chosen.map((place) => (sample.sides[place].why || [])[column] || "");
      const lines = why.every((one) => one === why[0]) ? why.slice(0, 1) : why.map((one, n) => data.sides[chosen[n]].label + ": " + (one || "nothing"));
      rows.push([name, chosen.map((place) => sample.sides[place].r[column]), lines.join("\n")]);
    });
    $("opened-scores").replaceChildren(...rows.flatMap(([name, scores, why]) => {
      const row = make("tr"), reason = make("tr", "why"), said = make("td", "", why);
      row.append(make("th", "", name), ...scores.map((value) => make("td", "num", score(value))));
      said.colSpan = 1 + scores.length;
      reason.append(said);
      return why ? [row, reason] : [row];
    }));
    $("opened-note").textContent = ["sample " + sample.n + " of prompt " + sample.id, sample.set || null, sample.task, sample.tag].filter((part) => part !== null).join(" · ");
    if (!dialog.open) dialog.showModal();
  }
  function step(by) {
    const place = order.indexOf(opened), next = order[place < 0 ? 0 : place + by];
    if (next !== undefined) open(next);
  }
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => {
    const button = $("cards").querySelector('[data-number="' + opened + '"]');
    if (button) button.focus();
  });

  for (const link of document.querySelectorAll("[data-sample]")) {
    link.addEventListener("click", (event) => { event.preventDefault(); open(Number(link.dataset.sample)); });
  }
  for (const link of document.querySelectorAll("[data-step]")) {
    link.addEventListener("click", () => {
      const place = data.sides.findIndex((side) => side.step === Number(link.dataset.step));
      if (place >= 0) { right.value = String(place); choose(); }
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (dialog.open) {
      if (event.key === "ArrowLeft") step(-1);
      else if (event.key === "ArrowRight") step(1);
      return;
    }
    if (/^(input|select|textarea)$/i.test(event.target.tagName)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (event.key === "/") {
      event.preventDefault();
      text.focus();
    } else if (event.key === "j" || event.key === "k") {
      const cards = [...$("cards").children], place = cards.indexOf(document.activeElement);
      const next = cards[place < 0 ? 0 : Math.min(Math.max(place + (event.key === "j" ? 1 : -1), 0), cards.length - 1)];
      if (next) next.focus();
    }
  });
  choose();
})();
