// A formula that is wider than the screen can be scrolled: make it reachable by keyboard, too.
addEventListener("load", () => {
  const mark = () => {
    for (const formula of document.querySelectorAll('mjx-container[display="true"]')) {
      if (formula.scrollWidth > formula.clientWidth) formula.tabIndex = 0;
      else formula.removeAttribute("tabindex");
    }
  };
  window.MathJax?.startup?.promise?.then(mark);
  addEventListener("resize", mark);
});
