"""Numbers and sentences of the report, in plain words.

A probability per drawn image is written as a count in 10,000 images. Limits are rounded outwards, so that a printed
interval is never narrower than the measured one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from diffusion_privacy.rounding import ROUNDING, Direction, to_digits

RATE_UNIT = "in 10,000 images"

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def significant(value: float, digits: int = 2, direction: Direction = "nearest") -> str:
    """``value`` with that many significant digits; thousands are set apart, far exponents written as powers of ten."""
    number = to_digits(value, digits, direction)
    if number == 0:
        return "0"
    exponent = number.adjusted()
    if not -4 <= exponent < 9:
        mantissa = number.scaleb(-exponent)
        return f"{mantissa:.{digits - 1}f}×10{str(exponent).translate(_SUPERSCRIPTS)}"
    return f"{number:,.{max(0, digits - 1 - exponent)}f}"


def fixed(value: float, places: int, direction: Direction = "nearest", scale: int = 1) -> str:
    """``scale · value`` with so many digits after the point."""
    number = Decimal(repr(float(value))) * scale
    # Adding 0 turns −0 into 0.
    return f"{number.quantize(Decimal(1).scaleb(-places), rounding=ROUNDING[direction]) + 0:f}"


def plain(text: str) -> str:
    """A printed number without zeros at the end that say nothing."""
    return text.rstrip("0").rstrip(".") if "." in text and "×" not in text else text


def rate(probability: float, direction: Direction = "nearest") -> str:
    """A probability as a count in 10,000, without the unit; a limit above 1 is shown as 1.

    A difference of two may be negative; ``"down"`` is towards −1.
    """
    return significant(min(probability, 1.0) * 1e4, 3 if abs(probability) >= 1e-2 else 2, direction).replace("-", "−")


def percent(probability: float, direction: Direction = "nearest") -> str:
    """E.g. ``"95 %"``, with a no-break space; only an upper limit is ever rounded to 100 %."""
    number = Decimal(repr(float(probability))) * 100
    if 99 < number < 100:
        text = str(number.quantize(Decimal("0.01"), rounding=ROUNDING["down" if direction == "nearest" else direction]))
    else:
        text = significant(float(number), 3, direction)
    return f"{plain(text)}\u00a0%"


def interval(entry: Mapping[str, Any], value: str = "value") -> str:
    """``"156 in 10,000 images (95 % interval 120 to 201)"`` for anything with value, lower, upper and level."""
    limits = f"{percent(entry['level'])} interval {rate(entry['lower'], 'down')} to {rate(entry['upper'], 'up')}"
    if entry[value] is None:
        return f"no point estimate ({limits} {RATE_UNIT})"
    return f"{rate(entry[value])} {RATE_UNIT} ({limits})"


def detector_rate(entry: Mapping[str, Any]) -> str:
    """An error rate of the detector in percent with its interval and the number of images behind it."""
    limits = f"{percent(entry['lower'], 'down')} to {percent(entry['upper'], 'up')}"
    if entry["value"] is None:
        return "not measured (0 images)"
    return f"{percent(entry['value'])} ({percent(entry['level'])} interval {limits}; {count(entry['n'])} images)"


def count(number: int) -> str:
    """A whole number with thousands set apart."""
    return f"{number:,}"


def calls(number: int) -> str:
    """A number of network calls, rounded to three digits."""
    if number < 10_000:
        return count(number)
    unit, name = (1e9, "billion") if number >= 1e9 else (1e6, "million") if number >= 1e6 else (1e3, "thousand")
    return f"{number / unit:.3g}\u00a0{name}"


def duration(seconds: float | None) -> str:
    """Seconds, or minutes from two minutes on; a dash where it was not measured."""
    if seconds is None:
        return "–"
    return f"{seconds:.1f}\u00a0s" if seconds < 120 else f"{seconds / 60:.1f}\u00a0min"


def record_name(record: Mapping[str, Any]) -> str:
    """E.g. ``"private record 12"``."""
    return f"{record['role']} record {record['index']}"


def paper_t_prime(entry: Mapping[str, Any]) -> str:
    """t' as the paper reads it."""
    return "no hit" if entry["value"] is None else f"{entry['value']:.2f} (no interval)"


def paper_terms(entry: Mapping[str, Any]) -> str:
    """What the paper's t' was read from."""
    return f"As in the paper: any hit in {count(entry['draws'])} draws at each of {count(entry['levels'])} levels."


def statistical_t_prime(entry: Mapping[str, Any]) -> str:
    """t' by confidence limits: a lower limit, since a level that did not pass may still give the record back."""
    if entry["value"] is None:
        return "not shown at any tested level"
    edge = ", the largest level tested" if entry["censored"] == "above" else ""
    return f"at least {plain(significant(entry['value'], 3, 'down'))}{edge}"


def statistical_terms(entry: Mapping[str, Any]) -> str:
    """Threshold, confidence and number of comparisons of the statistical t'."""
    return (
        f"Statistical: the lower limit of h exceeds γ = {percent(entry['gamma'])}, with {percent(entry['level'])} "
        f"confidence over all of {count(entry['comparisons'])} comparisons."
    )


def false_alarms(records: Iterable[Mapping[str, Any]]) -> str | None:
    """What is wrong where held-out controls are called leaked, since they cannot leak; None where none is."""
    controls = [record for record in records if record["role"] == "control"]
    alarms = [str(record["index"]) for record in controls if record["verdict"]["status"] == "leaks"]
    if not alarms:
        return None
    return (
        f"it says that {len(alarms)} of {len(controls)} held-out control records leak (record {', '.join(alarms)}), "
        "and none of them went into what was audited"
    )


def control_alarms(release: Mapping[str, Any]) -> list[str]:
    """One sentence for each model whose held-out controls were called leaked."""
    return [
        f"The audit of the model {name} cannot be trusted as it stands: {alarm}. Its detector or its thresholds are "
        "wrong."
        for name, model in release["models"].items()
        if (alarm := false_alarms(model["records"])) is not None
    ]


def standard_limits(release: Mapping[str, Any]) -> list[str]:
    """What no report of this kind says, with this run's numbers; `release["limits"]` adds to it."""
    models = release["models"].items()
    errors = "; ".join(
        f"{name}: false alarms {detector_rate(model['detector']['false_positive_rate'])}, returns seen "
        f"{detector_rate(model['detector']['true_positive_rate'])}"
        for name, model in models
    )
    samplers = "; ".join(
        f"{name}: {model['sampler']['name']}, {count(model['sampler']['steps'])} steps" for name, model in models
    )
    return [
        "It speaks of the records listed here and of no other. Another training record may come back more often.",
        "It speaks of this fingerprint. A record could be recognised by something that the detector does not look at.",
        "Score-subspace integration looks at paths that lead towards the record. No such local method rules out that "
        "the model draws the record in a form that no such path reaches; only the direct samples bound that.",
        f"The detector errs. {errors}. Fewer false alarms and more returns seen are better."
        f"{returns(model['detector'] for _, model in models)}",
        f"It holds for the sampler as it was run ({samplers}). Another sampler, or another number of steps, is another "
        "question.",
        "“No leak above bound” is a limit, not a zero: the true rate may be anything up to the upper limit.",
        "It says nothing on attacks that use the model’s weights rather than its images, and it gives no "
        "differential-privacy guarantee.",
    ]


def returns(detectors: Iterable[Mapping[str, Any]]) -> str:
    """What the shares of returns seen were measured on, and what that leaves open; `schema.Detector` of each model.

    Empty where no detector says it (``positive_time`` is not a required field).
    """
    times = sorted({detector["positive_time"] for detector in detectors if "positive_time" in detector})
    if not times:
        return ""
    shown = " and ".join(f"{t:g}" for t in times)
    return (
        f" Returns are the record with noise up to t = {shown} (of 1), drawn back; a record that comes back less "
        "clearly than those may go unseen."
    )


def all_limits(release: Mapping[str, Any]) -> list[str]:
    """The standard limits, then the run's own that are not among them."""
    standard = standard_limits(release)
    return standard + [sentence for sentence in release["limits"] if sentence not in standard]


def more_samples(verdict: Mapping[str, Any], what: str, bound: str) -> str:
    """What more samples would do for a verdict that is open, half a sentence.

    Args:
      verdict: `schema.Verdict`, not certified.
      what: what is drawn, in the plural.
      bound: what would be certified.
    """
    needed = verdict["samples_needed"]
    if needed is None:
        return f"more {what} are not expected to certify {bound}"
    if verdict.get("more_samples") == "certify if hits come as they did":
        # No exact number: it rests on a rate that is known roughly.
        return f"about {significant(needed, 2, 'up')} {what} would certify {bound} if hits come as they did"
    return f"{count(needed)} {what} without a hit would certify {bound}"


def _open_points(record: Mapping[str, Any]) -> list[str]:
    """What stayed open for one record, without its name."""
    verdict, t_prime = record["verdict"], record["t_prime"]
    points = []
    if verdict["status"] == "not certified":
        hits = record["direct"]["hits"]
        drawn = f"{count(record['direct']['n'])} were drawn, {count(hits) if hits else 'none'} with a hit"
        remedy = more_samples(verdict, "direct samples", f"a rate of at most {rate(verdict['bound'])} {RATE_UNIT}")
        points.append(f"neither a leak nor its absence was certified; {remedy}; {drawn}.")
    for title, entry in (("direct", record["direct"]), ("subspace", record["subspace"])):
        if entry is not None and not entry["reliable"]:
            if title == "subspace" and verdict["status"] != "not certified":
                # One sentence for all such records: numbers that differ from record to record decide nothing here.
                points.append("the subspace estimate is not reliable; the verdict rests on direct sampling.")
                continue
            reasons = "; ".join(entry["reasons"]) or "no reason recorded"
            points.append(f"the {title} estimate is not reliable by its own diagnostics: {reasons}.")
    censored = None if t_prime is None else t_prime["statistical"]["censored"]
    # A control that comes back from no tested level is what one hopes for, not an open point.
    if censored == "above" or (censored == "below" and record["role"] == "private"):
        points.append(f"t′ is censored: {statistical_t_prime(t_prime['statistical'])}.")
    return points


def open_points(audited: Mapping[str, Iterable[Mapping[str, Any]]]) -> list[str]:
    """What the audits could not certify, with the number of samples that would do.

    Args:
      audited: the records of each audited thing, by its name. Records with equal words are joined.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for name, records in audited.items():
        for record in records:
            for point in _open_points(record):
                groups.setdefault((name, point), []).append(record_name(record))
    return [f"{name}, {', '.join(who)}: {point}" for (name, point), who in groups.items()]


def uncertified(release: Mapping[str, Any]) -> list[str]:
    """What the run could not certify, see `open_points`."""
    return open_points({name: model["records"] for name, model in release["models"].items()})
