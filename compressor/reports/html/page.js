// Sorting and finding in the table of tensors; all there is to read is there without it.
(function () {
  var table = document.getElementById("all");
  if (!table) return;
  var body = table.tBodies[0], rows = Array.from(body.rows);
  var units = { B: 1, kB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12 };
  function value(row, column) {
    var cell = row.cells[column], text = cell ? cell.textContent.trim() : "";
    var found = /^<?([\d.]+(?:e[+-]?\d+)?) ?(B|kB|MB|GB|TB|%)?$/.exec(text);
    if (text === "inf") return Infinity;
    return found ? found[1] * (units[found[2]] || 1) : text;
  }
  function compare(a, b) {
    if (a === "" || b === "") return (a === "") - (b === "");
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  }
  Array.from(table.tHead.rows[0].cells).forEach(function (head, column, all) {
    if (head.textContent === "numbers") return;
    var button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.textContent = "";
    head.appendChild(button);
    button.addEventListener("click", function () {
      var sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
      if (column === 0 && !head.hasAttribute("aria-sort")) sign = 1;
      all.forEach(function (other) { other.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      rows.sort(function (a, b) {
        var x = value(a, column), y = value(b, column);
        return x === "" || y === "" ? compare(x, y) : sign * compare(x, y);
      });
      rows.forEach(function (row) { body.appendChild(row); });
    });
  });
  var tools = document.createElement("p"), label = document.createElement("label"), input = document.createElement("input");
  tools.className = "tools";
  label.textContent = "Show tensors with ";
  input.type = "search";
  label.appendChild(input);
  tools.appendChild(label);
  table.parentNode.parentNode.insertBefore(tools, table.parentNode);
  input.addEventListener("input", function () {
    rows.forEach(function (row) { row.hidden = row.textContent.indexOf(input.value) < 0; });
  });
})();
