// KaTeX draws what Sphinx marks as a formula: \(...\) within a line, \[...\] on its own.
for (const element of document.querySelectorAll(".math")) {
  const tex = element.textContent.trim().replace(/^\\[([]([^]*)\\[)\]]$/, "$1");
  katex.render(tex, element, {displayMode: element.tagName === "DIV", throwOnError: false});
}
