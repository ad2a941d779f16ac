"""Numbers and sentences of the report, in plain words.

A probability per drawn image is written as a count in 10,000 images. Limits are rounded outwards, so that a printed
interval is never narrower than the measured one.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from typing import Any, Literal

RATE_UNIT = "in 10,000 images"

Direction = Literal["nearest", "down", "up"]
_ROUNDING = {"nearest": ROUND_HALF_EVEN, "down": ROUND_FLOOR, "up": ROUND_CEILING}
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def significant(value: float, digits: int = 2, direction: Direction = "nearest") -> str:
    """``value`` with that many significant digits; thousands are set apart, far exponents written as powers of ten."""
    number = Decimal(repr(float(value)))
    if number == 0:
        return "0"
    number = number.quantize(Decimal(1).scaleb(number.adjusted() - digits + 1), rounding=_ROUNDING[direction])
    exponent = number.adjusted()
    if not -4 <= exponent < 9:
        mantissa = number.scaleb(-exponent)
        return f"{mantissa:.{digits - 1}f}×10{str(exponent).translate(_SUPERSCRIPTS)}"
    return f"{number:,.{max(0, digits - 1 - exponent)}f}"


def rate(probability: float, direction: Direction = "nearest") -> str:
    """A probability as a count in 10,000, without the unit; a limit above 1 is shown as 1."""
    return significant(min(probability, 1.0) * 1e4, 3 if probability >= 1e-2 else 2, direction)


def percent(probability: float, direction: Direction = "nearest") -> str:
    """E.g. ``"95 %"``, with a no-break space; never rounded to 100 % from below."""
    number = Decimal(repr(float(probability))) * 100
    step = Decimal("0.01") if number > 99 or 0 < number < 1 else Decimal("0.1")
    text = format(number.quantize(step, rounding=_ROUNDING[direction]).normalize(), "f")
    return f"{text}\u00a0%"


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
    """t' as the paper reads it, with what it was read from."""
    looked = f"{count(entry['draws'])} draws at each of {count(entry['levels'])} levels"
    return f"no hit in {looked}" if entry["value"] is None else f"{entry['value']:.2f} ({looked}; no interval)"


def statistical_t_prime(entry: Mapping[str, Any]) -> str:
    """t' by confidence limits, with its censoring, level and threshold."""
    terms = (
        f"lower limit of h above {percent(entry['gamma'])}, {percent(entry['level'])} confidence over "
        f"{count(entry['comparisons'])} comparisons"
    )
    value = "" if entry["value"] is None else f"{entry['value']:.3g}"
    shown = {
        None: value or "none: no tested level passed",
        "above": f"at least {value}" if value else "above the largest level tested",
        "below": f"below {value}" if value else "below the smallest level tested",
    }[entry["censored"]]
    return f"{shown} ({terms})"


def control_alarms(release: Mapping[str, Any]) -> list[str]:
    """One sentence for each model whose held-out controls were called leaked; controls cannot leak."""
    sentences = []
    for name, model in release["models"].items():
        controls = [record for record in model["records"] if record["role"] == "control"]
        alarms = [str(record["index"]) for record in controls if record["verdict"]["status"] == "leaks"]
        if alarms:
            sentences.append(
                f"The audit of the model {name} cannot be trusted as it stands: it says that {len(alarms)} of "
                f"{len(controls)} held-out control records leak (record {', '.join(alarms)}), and the model never saw "
                "them. Its detector or its thresholds are wrong."
            )
    return sentences


def standard_limits(release: Mapping[str, Any]) -> list[str]:
    """What no report of this kind says, with this run's numbers; `release["limits"]` adds to it."""
    models = release["models"].items()
    errors = "; ".join(
        f"{name}: images wrongly called the record {detector_rate(model['detector']['false_positive_rate'])}, lower is "
        f"better, images of the record that it sees {detector_rate(model['detector']['true_positive_rate'])}, higher "
        "is better"
        for name, model in models
    )
    samplers = "; ".join(
        f"{name}: {model['sampler']['name']}, {count(model['sampler']['steps'])} steps" for name, model in models
    )
    return [
        "It speaks of the records listed here and of no other. Another training record may come back more often.",
        "It speaks of this fingerprint. A record could be recognised by something that the detector does not look at.",
        "Score-subspace integration looks at images that can be reached by adding noise to the record. No such local "
        "method rules out that the model draws the record from elsewhere; only the direct samples bound that.",
        f"The detector errs. Measured: {errors}.",
        f"It holds for the sampler as it was run ({samplers}). Another sampler, or another number of steps, is another "
        "question.",
        "“No leak above bound” is a limit, not a zero: the true rate may be anything up to the upper limit.",
        "It says nothing on attacks that use the model's weights rather than its images, and it gives no "
        "differential-privacy guarantee.",
    ]


def all_limits(release: Mapping[str, Any]) -> list[str]:
    """The standard limits, then the run's own that are not among them."""
    standard = standard_limits(release)
    return standard + [sentence for sentence in release["limits"] if sentence not in standard]


def uncertified(release: Mapping[str, Any]) -> list[str]:
    """One sentence for each thing that the run could not certify, with the number of samples that would do."""
    sentences = []
    for name, model in release["models"].items():
        for record in model["records"]:
            who = f"{name}, {record_name(record)}"
            verdict = record["verdict"]
            if verdict["status"] == "not certified":
                needed = verdict["samples_needed"]
                remedy = (
                    "More samples alone would not decide it."
                    if needed is None
                    else f"About {count(needed)} direct samples would decide it; {count(record['direct']['n'])} were "
                    "drawn."
                )
                sentences.append(f"{who}: neither a leak nor its absence was certified. {remedy}")
            for title, entry in (("direct sampling", record["direct"]), ("subspace", record["subspace"])):
                if entry is not None and not entry["reliable"]:
                    reasons = "; ".join(entry["reasons"]) or "no reason recorded"
                    sentences.append(f"{who}: the {title} estimate is not reliable by its own diagnostics ({reasons}).")
            if record["t_prime"]["statistical"]["censored"] is not None:
                shown = statistical_t_prime(record["t_prime"]["statistical"])
                sentences.append(f"{who}: t′ is censored, {shown}.")
    return sentences
