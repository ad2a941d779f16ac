"""The U-Net of 113.7 million parameters on an accelerator, beside diffusers' under `torch.compile`.

    python -m benchmarks.device_unet --out FILE.json [--seconds N] [--small] [--only NAME …]

Shape: images of 64x64x4 (latents of 512 pixels), widths 128, 128, 256, 256, 512, 512 with two blocks a level and
attention at 4x4: diffusers' `UNet2DModel` as its unconditional example has it. Both sides have 113,675,524 parameters.

Measured, each item with its compilation apart: the best rate of a product of two 8192x8192 matrices; the training step
of `training.steps` (forward, backward, clipping, Adam, moving average) and PyTorch's with the same parts; the forward
pass; DDIM in 50 steps; where the time of our step goes, kernel by kernel. A step's operations are three times those of
the forward pass, counted from its program (`stages.operations`).

Each side runs in processes of its own, one after the other, so that memory is not shared. FILE.json is rewritten after
every item; what fails is recorded there with its traceback and the rest goes on. Items that would begin after ``N``
seconds are recorded as skipped, and nothing runs longer than ``N`` + 100 seconds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.device_items import FULL, SMALL

SCHEMA = 1
GRACE = 100.0
PHASES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("ours", ("device", "peak bfloat16", "train bfloat16", "forward bfloat16", "sample bfloat16")),
    ("peer", ("device", "peak bfloat16", "train bfloat16", "forward bfloat16", "sample bfloat16")),
    (
        "ours",
        (
            "peak float32",
            "peak float32 highest",
            "kernels of train bfloat16",
            "train float32",
            "train bfloat16, large batch",
            "convolutions",
            "attention",
            "forward float32",
        ),
    ),
    (
        "peer",
        (
            "train bfloat16 parameters",
            "train float32",
            "train bfloat16, large batch",
            "forward float32",
            "train bfloat16, max-autotune",
        ),
    ),
)
"""What runs, in this order: what the comparison needs first."""


def _rows(lines: Path) -> list[dict[str, Any]]:
    whole = lines.read_text().split("\n")[:-1] if lines.exists() else []
    return [json.loads(line) for line in whole]


class _Record:
    """What FILE.json holds, rewritten whenever something is known."""

    def __init__(self, out: Path, options: argparse.Namespace) -> None:
        self._out, self._start = out, time.time()
        self._fixed = {
            "schema": SCHEMA,
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": ["python", "-m", "benchmarks.device_unet", *sys.argv[1:]],
            "limit_s": options.seconds,
            "small": options.small,
        }
        self.items: list[dict[str, Any]] = []
        self.processes: list[dict[str, Any]] = []

    def write(self, running: list[dict[str, Any]]) -> None:
        """``running``: items of the process that has not ended."""
        items = [*self.items, *running]
        result = {**self._fixed, "wall_s": time.time() - self._start, "summary": summary(items), "items": items}
        text = json.dumps({**result, "processes": self.processes}, indent=1)
        part = self._out.with_suffix(self._out.suffix + ".part")
        part.write_text(text + "\n")
        part.replace(self._out)


def summary(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each item that both sides or one measured: rates, ours over the peer's, share of the measured peak."""
    done = {(item["side"], item["name"]): item for item in items if item["status"] == "done"}
    peak = max((i.get("flops_per_s", 0.0) for (_, name), i in done.items() if name == "peak bfloat16"), default=0.0)
    rows = []
    for name in dict.fromkeys(name for _, name in done):
        row: dict[str, Any] = {"name": name}
        # Both sides have the same network; its operations are counted on ours.
        work = done.get(("ours", name), {}).get("flops_per_image")
        for side in ("ours", "peer"):
            item = done.get((side, name), {})
            if "images_per_s" in item:
                row[side] = item["images_per_s"]
                if peak and work:
                    row[f"{side}_share_of_bfloat16_peak"] = work * item["images_per_s"] / peak
        if "ours" in row and "peer" in row:
            row["ours_over_peer"] = row["ours"] / row["peer"]
        if len(row) > 1:
            rows.append(row)
    return rows


def _run_process(side: str, names: list[str], record: _Record, deadline: float, folder: Path, small: bool) -> None:
    """Items of one side in a process of its own; whatever happens to it is recorded."""
    number = len(record.processes)
    lines, log = folder / f"{number}.jsonl", folder / f"{number}.log"
    module = {"ours": "benchmarks.device_jax", "peer": "benchmarks.device_torch"}[side]
    command = [sys.executable, "-m", module, "--lines", str(lines), "--deadline", str(deadline)]
    command += [*(["--small"] if small else []), "--items", *names]
    start, killed = time.time(), False
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            time.sleep(0.5)
            record.write(_rows(lines))
            if time.time() > deadline + GRACE and not killed:
                process.kill()
                killed = True
    rows = _rows(lines)
    known = {row["name"] for row in rows}
    reason = "killed at the time limit" if killed else f"its process ended with code {process.returncode}"
    rows += [{"name": n, "side": side, "status": "failed", "traceback": reason} for n in names if n not in known]
    record.items += rows
    text = log.read_text(errors="replace")
    record.processes.append(
        {"side": side, "returncode": process.returncode, "wall_s": time.time() - start, "output_tail": text[-6000:]}
    )
    record.write([])
    print("\n".join(line for line in text.splitlines() if line.startswith(f"{side}: ")), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="file of the results, JSON")
    parser.add_argument("--seconds", type=float, default=150.0, help="no item begins later than this")
    parser.add_argument(
        "--small", action="store_true", help="a tiny network: a trial of the program, not a measurement"
    )
    parser.add_argument("--only", nargs="+", default=[], help="names of items; all by default")
    options = parser.parse_args()
    record, deadline = _Record(options.out, options), time.time() + options.seconds
    sizes = SMALL if options.small else FULL
    print(f"sizes: {sizes}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for side, names in PHASES:
            wanted = [name for name in names if not options.only or name in options.only]
            if not wanted:
                continue
            if time.time() > deadline:
                reason = "it would have begun after the time limit"
                record.items += [{"name": n, "side": side, "status": "skipped", "reason": reason} for n in wanted]
                record.write([])
                continue
            _run_process(side, wanted, record, deadline, Path(folder), options.small)
    for row in summary(record.items):
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    states = [item["status"] for item in record.items]
    print(f"{states.count('done')} done, {states.count('failed')} failed, {states.count('skipped')} skipped")


if __name__ == "__main__":
    main()
