// Light or dark, before the first pixel: a classic script in the head, so that nothing flashes at three in the morning.
// The system's wish counts until somebody chooses here; the choice is kept in this browser.

(() => {
  const KEY = "causeway.theme";
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // storage may be forbidden; the system's wish is good enough then
    }
  };
  const apply = () => {
    document.documentElement.dataset.theme = chosen() ?? (system.matches ? "dark" : "light");
    window.dispatchEvent(new Event("causeway:theme"));
  };
  system.addEventListener("change", apply);
  window.causewayTheme = {
    toggle() {
      const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      try {
        // Back to what the system says is no choice any more: it follows the system again.
        if (next === (system.matches ? "dark" : "light")) localStorage.removeItem(KEY);
        else localStorage.setItem(KEY, next);
      } catch {
        // It then lasts as long as the page.
      }
      document.documentElement.dataset.theme = next;
      window.dispatchEvent(new Event("causeway:theme"));
    },
  };
  apply();
})();
