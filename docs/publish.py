"""Puts the built site beside those of other versions: `python docs/publish.py build/docs PUBLIC`.

PUBLIC is what a web server shows. Each version is a folder of it; `versions.json` lists them, newest first, for the
choice of versions on each page; `index.html` leads to the newest.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

INDEX = (
    '<!doctype html><title>hf_distill</title><meta http-equiv="refresh" content="0; url={0}/"><a href="{0}/">{0}</a>'
)


def version_of(site: Path) -> str:
    """Return the version that a built site is of."""
    found = re.search(r"VERSION: '([^']+)'", (site / "_static" / "documentation_options.js").read_text("utf-8"))
    if found is None:
        raise SystemExit(f"{site}: not a site that `make docs` built")
    return found[1]


def publish(site: Path, public: Path) -> list[str]:
    """Copy a site into its folder, in place of one of the same version, and return all versions, newest first."""
    version = version_of(site)
    shutil.rmtree(public / version, ignore_errors=True)
    shutil.copytree(site, public / version)
    folders = [one.parent.parent.name for one in public.glob("*/_static/documentation_options.js")]
    versions = sorted(folders, key=lambda name: [int(part) for part in re.findall(r"\d+", name)], reverse=True)
    (public / "versions.json").write_text(json.dumps(versions) + "\n", encoding="utf-8")
    (public / "index.html").write_text(INDEX.format(versions[0]), encoding="utf-8")
    return versions


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python docs/publish.py build/docs PUBLIC")
    print(f"{sys.argv[2]}: {', '.join(publish(Path(sys.argv[1]), Path(sys.argv[2])))}")
