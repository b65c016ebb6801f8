"use strict";
(() => {
  const VOID = 255;
  const WRONG = [213, 94, 0];
  const DIM = "dim";

  const element = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  const content = (box) => JSON.parse(box.querySelector("script[type='application/json']").textContent);
  const percent = (share) => `${(100 * share).toFixed(1)} %`;

  /* Samples: an image, and the numbers of its classes, which a canvas shows in colours. */

  const loaded = (uri) => new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("A picture of this page is damaged."));
    image.src = uri;
  });

  const pixelsOf = (image, width, height) => {
    const context = Object.assign(document.createElement("canvas"), { width, height }).getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(image, 0, 0, width, height);
    return context.getImageData(0, 0, width, height).data;
  };

  const numbersOf = (image, width, height) => pixelsOf(image, width, height).filter((_, index) => index % 4 === 0);

  const read = async (sample) => {
    const [image, truth, ...predictions] = await Promise.all(
      [sample.image, sample.truth, ...sample.predictions].map(loaded));
    const { naturalWidth: width, naturalHeight: height } = image;
    const numbers = (picture) => numbersOf(picture, width, height);
    return { width, height, image: pixelsOf(image, width, height), truth: numbers(truth), predictions: predictions.map(numbers) };
  };

  const rgb = (color) => [1, 3, 5].map((start) => parseInt(color.slice(start, start + 2), 16));

  /* Return what gives the colour of a pixel in a layer: null where it is that of the image. */
  const painter = (layer, maps, run, colors, only) => {
    const { width, truth } = maps;
    const prediction = maps.predictions[run];
    const hatched = (at) => ((at % width + Math.floor(at / width)) % 8 < 4 ? [255, 255, 255] : [85, 85, 85]);
    const colored = (label, at) => (label < colors.length ? colors[label] : hatched(at));
    const shown = {
      image: (at) => truth[at] === only,
      truth: (at) => truth[at] === only,
      prediction: (at) => prediction[at] === only,
      errors: (at) => truth[at] === only || prediction[at] === only,
    }[layer];
    const paint = {
      image: () => null,
      truth: (at) => colored(truth[at], at),
      prediction: (at) => colored(prediction[at], at),
      errors: (at) => (truth[at] === VOID ? hatched(at) : truth[at] === prediction[at] ? DIM : WRONG),
    }[layer];
    return only === null ? paint : (at) => (shown(at) ? paint(at) : DIM);
  };

  const paint = (canvas, maps, colorAt, opacity, dimming) => {
    const { width, height, image } = maps;
    Object.assign(canvas, { width, height });
    canvas.style.imageRendering = width < 400 ? "pixelated" : "auto"; // borders of tiny pictures stay sharp
    const context = canvas.getContext("2d");
    const result = context.createImageData(width, height);
    for (let at = 0, byte = 0; at < width * height; at += 1, byte += 4) {
      const color = colorAt(at);
      const grey = color === DIM ? 0.25 * (0.3 * image[byte] + 0.59 * image[byte + 1] + 0.11 * image[byte + 2]) : 0;
      const share = color === null ? 0 : color === DIM ? dimming : opacity;
      for (let channel = 0; channel < 3; channel += 1) {
        const over = color === DIM ? grey : color === null ? 0 : color[channel];
        result.data[byte + channel] = Math.round(image[byte + channel] * (1 - share) + over * share);
      }
      result.data[byte + 3] = 255;
    }
    context.putImageData(result, 0, 0);
  };

  const viewer = (box) => {
    const data = content(box);
    const at = (name) => box.querySelector(`[data-at=${name}]`);
    const [canvas, which, opacity, legend, reading] = ["canvas", "which", "opacity", "legend", "reading"].map(at);
    const colors = data.colors.map((color, label) => (data.clear.includes(label) ? null : rgb(color)));
    const nameOf = (label) => data.classes[label] ?? "void";
    const chosen = (name, otherwise) => box.querySelector(`input[name=${name}]:checked`)?.value ?? otherwise;
    let maps = null;
    let pinned = null;
    let pointed = null;

    const chip = (label) => {
      const made = element("span", { class: label < colors.length ? "chip" : "chip void" });
      if (label < colors.length) made.style.setProperty("--chip", colors[label] ? data.colors[label] : "transparent");
      return made;
    };

    const draw = () => {
      if (!maps) return;
      const [layer, run, only] = [chosen("layer"), Number(chosen("run", 0)), pointed ?? pinned];
      const share = opacity.value / 100;
      paint(canvas, maps, painter(layer, maps, run, colors, only), share, only === null ? share : Math.max(share, 0.8));
      const of = data.runs.length > 1 && ["prediction", "errors"].includes(layer) ? ` of ${data.runs[run]}` : "";
      const alone = only === null ? "" : `, ${nameOf(only)} alone`;
      canvas.setAttribute("aria-label", `${data.samples[which.value].name}: ${layer}${of}${alone}`);
      canvas.dataset.shown = `${which.value} ${layer} ${run} ${only}`;
    };

    const list = () => {
      const labels = new Set([...new Set(maps.truth), ...new Set(maps.predictions[Number(chosen("run", 0))])]);
      if (!labels.has(pinned)) pinned = null;
      pointed = null;
      legend.replaceChildren(...[...labels].sort((a, b) => a - b).map((label) => {
        const button = element("button", { type: "button", "aria-pressed": label === pinned }, chip(label), nameOf(label));
        const point = (to) => () => { pointed = to; draw(); };
        for (const event of ["pointerenter", "focus"]) button.addEventListener(event, point(label));
        for (const event of ["pointerleave", "blur"]) button.addEventListener(event, point(null));
        button.addEventListener("click", () => {
          pinned = label === pinned ? null : label;
          pointed = null;
          for (const other of legend.querySelectorAll("button")) other.setAttribute("aria-pressed", other === button && pinned !== null);
          draw();
        });
        return element("li", {}, button);
      }));
    };

    const describe = (sample) => {
      const scores = sample.scores.map(([meanIU, accuracy], run) => {
        const of = data.runs.length > 1 ? `${data.runs[run]}: ` : "";
        if (meanIU === null) return `${of}no score`;
        return data.runs.length > 1 ? `${of}${percent(meanIU)}` : `mean IU ${percent(meanIU)}, pixel accuracy ${percent(accuracy)}`;
      });
      const place = `${Number(which.value) + 1} of ${data.samples.length}`;
      at("name").textContent = `${place} · ${sample.name} · ${data.runs.length > 1 ? "mean IU " : ""}${scores.join(", ")}`;
      which.setAttribute("aria-valuetext", at("name").textContent);
    };

    const show = async () => {
      const sample = data.samples[which.value];
      describe(sample);
      reading.textContent = "Point at or tap the picture to read its classes.";
      sample.maps ??= read(sample);
      const read_ = await sample.maps;
      if (sample !== data.samples[which.value]) return; // the slider has moved on
      maps = read_;
      list();
      draw();
    };

    const tell = (event) => {
      if (!maps) return;
      const place = canvas.getBoundingClientRect();
      const scale = Math.min(place.width / maps.width, place.height / maps.height); // as object-fit: contain has it
      const column = Math.floor((event.clientX - place.left) / scale);
      const row = Math.floor((event.clientY - place.top) / scale);
      if (column < 0 || row < 0 || column >= maps.width || row >= maps.height) return;
      const index = row * maps.width + column;
      const word = (title, label) => element("span", {}, title, " ", chip(label), nameOf(label));
      const several = data.runs.length > 1;
      const words = maps.predictions.map((map, run) => word(several ? data.runs[run] : "prediction", map[index]));
      reading.replaceChildren(...[word("truth", maps.truth[index]), ...words].flatMap((part) => [part, ", "]).slice(0, -1));
    };

    const move = (to) => {
      which.value = to;
      show();
    };

    which.addEventListener("input", show);
    opacity.addEventListener("input", draw);
    box.addEventListener("change", (event) => {
      if (event.target.name === "run") list();
      if (event.target.type === "radio") draw();
    });
    for (const event of ["pointermove", "pointerdown"]) canvas.addEventListener(event, tell);
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      move(Number(which.value) + step);
    });
    for (const link of document.querySelectorAll("a[data-row]")) {
      link.addEventListener("click", () => move(data.samples.findIndex((sample) => sample.row === Number(link.dataset.row))));
    }
    show();
  };

  /* Tables that are sorted by a click on a heading: numbers from the largest, names from the first. */

  const sortable = (table) => {
    const body = table.tBodies[0];
    const headings = [...table.tHead.rows[0].cells];
    const original = [...body.rows];
    headings.forEach((heading, column) => {
      const button = element("button", { type: "button" }, ...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const first = column ? "descending" : "ascending";
        const second = column ? "ascending" : "descending";
        const order = heading.getAttribute("aria-sort") === first ? second : first;
        for (const other of headings) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const key = (row) => row.cells[column];
        const compare = column
          ? (a, b) => key(a).dataset.value - key(b).dataset.value
          : (a, b) => key(a).textContent.localeCompare(key(b).textContent);
        body.append(...[...original].sort((a, b) => sign * compare(a, b)));
      });
    });
  };

  /* Confusion: the cell under the pointer or in focus is read out below. */

  const confusion = (box) => {
    const { classes, counts } = content(box);
    const reading = box.querySelector(".reading");
    const rows = [...box.querySelector("tbody").rows].map((row) => [...row.querySelectorAll("td")]);
    const places = new Map(rows.flatMap((cells, row) => cells.map((cell, column) => [cell, [row, column]])));
    let current = rows[0][0];
    current.tabIndex = 0;

    const tell = (cell) => {
      const [row, column] = places.get(cell);
      const sum = counts[row].reduce((total, count) => total + count, 0);
      const share = sum ? `${percent(counts[row][column] / sum)}, ` : "";
      const called = row === column ? "rightly called" : "called";
      reading.replaceChildren(element("b", {}, classes[row]), ` ${called} `, element("b", {}, classes[column]),
        `: ${share}${counts[row][column].toLocaleString("en")} of ${sum.toLocaleString("en")} pixels`);
    };
    const cellOf = (event) => event.target.closest("tbody td");

    for (const event of ["pointerover", "focusin"]) {
      box.addEventListener(event, (happened) => { if (cellOf(happened)) tell(cellOf(happened)); });
    }
    box.addEventListener("keydown", (event) => {
      const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
      if (!step || !cellOf(event)) return;
      event.preventDefault();
      const [row, column] = places.get(cellOf(event));
      const next = rows[row + step[0]]?.[column + step[1]];
      if (!next) return;
      current.tabIndex = -1;
      current = next;
      current.tabIndex = 0;
      current.focus();
    });
  };

  document.querySelectorAll("[data-viewer]").forEach(viewer);
  document.querySelectorAll("table.sortable").forEach(sortable);
  document.querySelectorAll("[data-confusion]").forEach(confusion);
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
})();
