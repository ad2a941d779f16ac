"""What all pages share: one self-contained document, embedded pictures, and files that appear whole.

Pictures are embedded, the style is inline, there is no script, and a content policy forbids loading anything. Every
text that comes from a release passes through `tables.escape`; markup comes only from the templates here and there.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from string import Template
from typing import Any

from diffusion_privacy.errors import InputError
from diffusion_privacy.reports import structure, tables
from diffusion_privacy.reports.figures import Picture
from diffusion_privacy.reports.schema import FILE_NAME
from diffusion_privacy.reports.style import CSS
from diffusion_privacy.reports.tables import escape

PAGE_NAME = "index.html"

SUBSPACE_METHOD = (
    "Paths from pure noise are pulled towards the record down to some noise level, the model alone finishes them, and "
    "each result is weighted by how likely the model would have taken that path by itself. The weighted share of hits "
    "is q again, from far fewer images."
)
"""What E2 does, for all pages that have it."""

H_CURVE_METHOD = (
    "h(t) is the probability that the record comes back after noise up to level t was added to it. t′ is the largest "
    "level at which that was shown; no level above it is shown to be free of the record. Higher means more memorised. "
    "t′ is an indicator; q decides."
)
"""What h(t) and t′ are, for all pages that have them."""

_DOCUMENT = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>$css</style>
</head>
<body>
<header>
<h1>$title</h1>
<p class="soft">$program · data: $source · schema $schema</p>
</header>
<main>
<h2>What was asked</h2>
<p>$question</p>
$body
<h2>Versions, configuration, hashes</h2>
$facts
$timings
<h3>Configuration</h3>
$config
</main>
</body>
</html>
""")


def document(title: str, release: Mapping[str, Any], body: str, digest: str) -> str:
    """A whole page: the question, ``body`` (markup), and what is needed to repeat the run.

    Args:
      title: heading of the page, plain text.
      release: validated; the fields that every release has.
      body: the sections between question and versions.
      digest: SHA-256 of release.json in hex.
    """
    program = release["program"]
    return _DOCUMENT.substitute(
        title=escape(title),
        css=CSS,
        program=escape(f"{program['name']} {program['version']}"),
        source=escape(release["data"]["source"]),
        schema=escape(release["schema_version"]),
        question=escape(release["question"]),
        body=body,
        facts=tables.facts(release, digest),
        timings=tables.timings(release),
        config=tables.bullets(tables.flat("", release["config"]), "config"),
    )


def figure(picture: Picture) -> str:
    """A picture with its title and caption, embedded in the page."""
    data = base64.b64encode(picture.path.read_bytes()).decode("ascii")
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(picture.alt)}">'
        f"<figcaption><b>{escape(picture.title)}.</b> {escape(picture.caption)}</figcaption></figure>"
    )


def definitions(terms: Iterable[tuple[str, str]]) -> str:
    """A list of terms and what they mean, both plain text."""
    entries = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in terms)
    return f"<dl>{entries}</dl>"


def write(
    report_dir: Path,
    release: Mapping[str, Any],
    validate: Callable[[object], None],
    draw: Callable[[Path], Mapping[str, Picture]],
    render: Callable[[Mapping[str, Picture], str], str],
) -> Path:
    """Write release.json, ``figures/*.png`` and index.html; return the page's path.

    Args:
      report_dir: made if it is not there; an earlier report in it is replaced.
      release: what release.json holds.
      validate: raises InputError where it does not follow its schema.
      draw: writes the pictures into a folder.
      render: the page as text from the pictures and the SHA-256 of release.json in hex.

    Raises:
      InputError: a directory that cannot be written, or what these raise.
    """
    folder, page = report_dir / "figures", report_dir / PAGE_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        structure.write_json(report_dir / FILE_NAME, release, validate)
        digest = hashlib.sha256((report_dir / FILE_NAME).read_bytes()).hexdigest()
        drawn = draw(folder)
        temporary = page.with_name(PAGE_NAME + ".partial")
        temporary.write_text(render(drawn, digest), encoding="utf-8")
        os.replace(temporary, page)
    except OSError as error:
        raise InputError(f"{report_dir}: expected a writable directory for the report ({error.strerror})") from error
    return page
