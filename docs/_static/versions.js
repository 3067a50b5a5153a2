// Where several versions are published as folders beside a versions.json (["0.2.0", "0.1.0"]), a reader can switch.
document.addEventListener("DOMContentLoaded", async () => {
  const root = new URL(document.documentElement.dataset.content_root, location.href);
  const here = decodeURIComponent(root.pathname.split("/").at(-2) ?? "");
  // A site that is opened from a disk, or alone, asks for nothing.
  if (!location.protocol.startsWith("http") || !/^\d/.test(here)) return;
  const answer = await fetch(new URL("../versions.json", root));
  const versions = answer.ok ? await answer.json() : [];
  if (versions.length < 2) return;
  const box = document.querySelector(".versions");
  const select = box.querySelector("select");
  for (const version of versions) select.add(new Option(version, version, false, version === here));
  select.addEventListener("change", async () => {
    const other = new URL(`../${select.value}/`, root);
    const page = new URL(location.pathname.slice(root.pathname.length), other);
    const found = await fetch(page, { method: "HEAD" });
    location.href = found.ok ? page : other;
  });
  box.hidden = false;
});
