// One utterance is chosen at a time, by keys, pointer, timeline or player; its probabilities stand in the panel.
{
  const list = document.getElementById("talk");
  const rows = [...list.children];
  const timeline = document.getElementById("timeline");
  const total = Number(timeline.dataset.seconds) || 0;
  const places = rows.map((row, i) => total ? Number(row.dataset.start) / total : i / rows.length); // they never fall
  const strips = [...timeline.querySelectorAll("svg")];
  const panel = document.getElementById("odds");
  const lines = [...panel.querySelectorAll("tbody tr")];
  const player = document.getElementById("player");
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let chosen = rows[0];

  function show(row) {
    panel.querySelector("caption").textContent = row.querySelector(".who").textContent + ", utterance " + (rows.indexOf(row) + 1);
    row.dataset.odds.split(" ").forEach((odds, i) => {
      lines[i].querySelector("i").style.width = odds / 10 + "%";
      lines[i].lastElementChild.textContent = Math.round(odds / 10) + "%";
    });
  }

  function choose(row, scroll) {
    chosen.classList.remove("chosen");
    chosen.tabIndex = -1;
    chosen = row;
    row.classList.add("chosen");
    row.tabIndex = 0;
    show(row);
    const place = places[rows.indexOf(row)];
    for (const strip of strips) strip.querySelector(".here").setAttribute("x", place * strip.viewBox.baseVal.width);
    if (scroll) row.scrollIntoView({ block: "center", behavior: calm ? "auto" : scroll });
  }

  function move(row) {
    row.focus({ preventScroll: true });
    row.scrollIntoView({ block: "nearest" });
  }

  list.addEventListener("focusin", event => {
    const row = event.target.closest("li");
    choose(row);
    row.setAttribute("aria-label", [...row.children].map(part => part.innerText).join(", ")); // a list item has no name of its own
    row.setAttribute("aria-description", lines.map(line => line.innerText.replace(/\s+/g, " ")).join(", "));
  });
  list.addEventListener("focusout", event => {
    for (const name of ["aria-label", "aria-description"]) event.target.closest("li").removeAttribute(name);
  });
  list.addEventListener("pointerover", event => { const row = event.target.closest("li"); if (row) show(row); });
  list.addEventListener("pointerleave", () => show(chosen));
  list.addEventListener("click", event => {
    const row = event.target.closest("li");
    if (!row) return;
    choose(row);
    if (event.target.closest("button")) play(row);
  });
  list.addEventListener("keydown", event => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -rows.length, End: rows.length };
    const at = rows.indexOf(event.target.closest("li"));
    if (event.key in steps) move(rows[Math.max(0, Math.min(rows.length - 1, at + steps[event.key]))]);
    else if (event.key === "Enter" && event.target === rows[at]) play(rows[at]);
    else return;
    event.preventDefault();
  });

  function under(event) {
    const box = strips[0].getBoundingClientRect();
    const place = (event.clientX - box.left) / box.width;
    return rows[Math.max(0, places.findLastIndex(start => start <= place))];
  }
  for (const strip of strips) {
    strip.addEventListener("click", event => { choose(under(event), "auto"); chosen.focus({ preventScroll: true }); });
    strip.addEventListener("pointermove", event => show(under(event)));
    strip.addEventListener("pointerleave", () => show(chosen));
  }

  let source = 0; // which recording the player holds
  function play(row) {
    if (!player || !row.dataset.media) return;
    load(Number(row.dataset.media));
    const start = Number(row.dataset.start) || 0;
    const go = () => { player.currentTime = start; player.play().catch(() => {}); };
    if (player.readyState) go(); else player.addEventListener("loadedmetadata", go, { once: true });
  }
  function load(number) {
    if (number === source) return;
    source = number;
    player.src = player.dataset["source" + number];
  }
  if (player) {
    const file = document.getElementById("file");
    const note = document.getElementById("note");
    const follow = document.getElementById("follow");
    let playing = null;
    player.src = player.dataset.source0;
    player.addEventListener("error", () => { note.hidden = false; });
    player.addEventListener("loadedmetadata", () => { note.hidden = true; });
    file.addEventListener("change", () => {
      if (file.files[0]) player.src = player.dataset["source" + source] = URL.createObjectURL(file.files[0]);
    });
    player.addEventListener("timeupdate", () => {
      const now = rows.findLast(row => Number(row.dataset.media) === source && Number(row.dataset.start) <= player.currentTime + .05);
      if (!now || now === playing) return;
      playing?.removeAttribute("aria-current");
      playing = now;
      now.setAttribute("aria-current", "true");
      if (follow.checked && !player.paused) choose(now, "smooth");
    });
  }

  choose(rows[0]);
  const linked = document.getElementById(location.hash.slice(1));
  if (rows.includes(linked)) choose(linked); // the browser itself scrolls there
}
