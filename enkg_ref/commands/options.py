"""The options of the commands as data: name, how its text is read, one line of help. ``cli`` makes its parser of them.

An option is a pair (name, {"read": text -> value, "help", "default", "choices", "metavar", "switch"}); ``switch``: it
takes no value and is true where it is given. Names are those of the fields of the requests.
"""

from __future__ import annotations

import problems
from problems.problem import integer, nonnegative, positive

from ..methods import METHODS
from ..plan import STEP_RULES, STOPS
from ..presets import PRESETS
from .solve import VJP_COST


def budgets(text):
    """Rising whole numbers, of a text with commas."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"got {text!r}, expected whole numbers separated by commas") from None
    if len(set(found)) < len(found) or min(found) < 1:
        raise ValueError(f"got {text!r}, expected different numbers >= 1")
    return tuple(sorted(found))


def window(text):
    """Two fractions of the steps."""
    try:
        start, end = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"got {text!r}, expected START,END as fractions of the steps") from None
    if not (start >= 0.0 and end >= 0.0 and start + end < 1.0):
        raise ValueError(f"got {text!r}, expected two fractions >= 0 with a sum below 1")
    return start, end


def shape(text):
    """One to three whole numbers, of a text with commas."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not (1 <= len(found) <= 3 and min(found) >= 1):
        raise ValueError(f"got {text!r}, expected one to three whole numbers >= 1 with commas between them")
    return found


def names(text):
    """The names of a text with commas."""
    return tuple(text.split(","))


SETTINGS = {  # of a method, by the names in its ``options``
    "particles": {"read": integer, "help": "J, ensemble size; default: the problem's"},
    "steps": {"read": integer, "help": "N, diffusion steps; default: the problem's"},
    "updates": {"read": integer, "help": "U, corrections per guided level; default: the problem's"},
    "guidance": {"read": nonnegative, "help": "gamma; monotone up to 2; default: the problem's"},
    "window": {"read": window, "metavar": "START,END", "help": "unguided fractions of the steps at both ends; default: "
               "the problem's"},
    "step_rule": {"choices": STEP_RULES, "help": "(T5); default frobenius. 'tempered' is an extension, not in the "
                  "paper"},
    "stop": {"choices": STOPS, "help": "discrepancy stop, an extension, not in the paper; default none"},
    "failed": {"choices": ("shift", "keep", "raise"), "help": "what a failed forward call does to its particle; "
               "default shift"},
    "tail": {"read": nonnegative, "metavar": "SHARE", "help": "share of --budget for Metropolis chains that start "
             "where the method ends and sample the posterior, an extension, not in the paper; for few unknowns and "
             "cheap priors; default none"},
    "preset": {"help": "a released configuration of the sampler (data and misfit stay the problem's): "
               f"{', '.join(PRESETS)}"},
    "paper": {"switch": True, "help": "the published settings exactly: the preset of the problem where it has one, "
              "else guidance 2, without stop, guard or plausibility rule"},
}
METHOD_OPTIONS = tuple(dict.fromkeys(name for method in METHODS.values() for name in method.options))

SHARED = (
    ("prior", {"help": "shipped prior by name, an .onnx file, or gaussian (the Gaussian of the problem's fields); "
               "default: the problem's own"}),
    ("out", {"metavar": "DIR", "help": "output folder; default out-PROBLEM, out-compare-PROBLEM for compare"}),
    ("quiet", {"switch": True, "help": "print nothing"}),
)

SOLVE = (
    ("method", {"help": f"one of {', '.join(METHODS)}; default: enkg for the problems of the list, enkg-r for your "
                "own where the prior has a reference, else enkg"}),
    ("budget", {"read": integer, "metavar": "CALLS", "help": "forward calls of one ensemble, from which all settings "
                f"follow. A gradient costs {VJP_COST:g} calls beside its value"}),
    *((name, SETTINGS.get(name, {})) for name in METHOD_OPTIONS),
    ("forward", {"metavar": "NAME", "help": "your simulator: package.module:function, (J, *event) -> (J, m) in "
                 "physical units, or a command with {input} and {output} (.npy, one member each)"}),
    ("timeout", {"read": positive, "metavar": "SECONDS", "help": "of one run of a command; then it is killed, a failed "
                 "member"}),
    ("reference", {"metavar": "FILE", "help": "enkg-r with a prior of your own: images like those it was trained on, "
                   ".npy, (N, *event) in physical units, N >= 32; or a reference .npz"}),
    ("seed", {"read": integer, "default": 0, "help": "of the initial noise; ensemble k uses seed + k; default 0"}),
    ("ensembles", {"read": integer, "help": "independent ensembles; default: the problem's, 1 or 3"}),
    ("workers", {"read": integer, "help": "processes for the ensembles, by default at most one per core; for one "
                 "ensemble with --forward, members side by side"}),
    ("device", {"choices": ("cpu", "cuda"), "default": "cpu", "help": "default cpu; cuda needs the extra gpu"}),
    ("dtype", {"choices": ("float64", "float32"), "default": "float64", "help": "of the particles, default float64; "
               "priors run in float32"}),
    ("chunk", {"read": integer, "help": "rows per call of prior and forward model"}),
    ("resume", {"switch": True, "help": "go on with the unfinished run in --out, or start; the folder knows the "
                "command of its run"}),
    ("no_figure", {"switch": True, "help": "draw no figure.png"}),
    ("strict", {"switch": True, "help": "exit code 1 unless the verdict is that data and spread are good"}),
    *SHARED,
)

NOT_ASKED = {"forward", "timeout", "ensembles", "workers", "out", "resume", "strict", "quiet"}
ASK = (*(option for option in SOLVE if option[0] not in NOT_ASKED),
       *((name, {"metavar": "FILE", "help": "as for solve --forward"}) for name in ("observation", "noise", "truth")))

COMPARE = (
    ("methods", {"read": names, "required": True, "metavar": "A,B,..", "help": f"some of {', '.join(METHODS)}"}),
    ("budget", {"read": budgets, "required": True, "metavar": "N[,N..]", "help": "forward calls of one run, a gradient "
                "at its measured cost; a method spends it as enkg list says"}),
    ("c_vjp", {"read": nonnegative, "metavar": "CALLS", "help": "what a gradient costs beside its value, in forward "
               "calls; default: measured once, at least 1, and kept in --out"}),
    ("seeds", {"read": integer, "default": 3, "help": "runs per method, budget and item; default 3"}),
    ("items", {"read": integer, "default": 10, "help": "simulated truths, numbers 0, 1, ...; default 10"}),
    ("tune", {"read": integer, "nargs": "?", "const": 0, "metavar": "N", "help": "first choose the settings, of four, "
              "on two other items at budget N (the largest)"}),
    *SHARED,
)

VERIFY = (
    ("json", {"metavar": "FILE", "help": "the same for machines"}),
    ("backend", {"default": "numpy", "help": "numpy, torch, jax, strict or cupy"}),
)


_IMAGES = (  # of enkg prior fit and train
    ("out", {"required": True, "metavar": "FILE.onnx", "help": "the prior; its Jacobian and its reference for enkg-r "
             "are written beside it"}),
    ("scale", {"read": positive, "help": "x = (image - shift)/scale are the prior's units; default: so that x has a "
               "standard deviation of 0.5"}),
    ("shift", {"read": float, "help": "default: the mean of all pixels"}),
    ("units", {"default": "", "help": "of the images, in words"}),
    ("data", {"default": "", "help": "what the images are, in words"}),
    ("seed", {"read": int, "default": 0, "help": "default 0"}),
)
_FILE = "images, .npy, (N, *event), physical units, N at least 32"
PRIOR = {  # verb: (help, help of its argument, options)
    "fit": ("a prior from images by mean and covariance, or a mixture: seconds, no torch", _FILE, (
        ("kind", {"default": "gaussian", "choices": ("gaussian", "mixture"), "help": "default gaussian"}),
        ("components", {"read": integer, "help": "of the mixture; default: by held-out images"}),
        ("modes", {"read": integer, "help": "principal components; default: by held-out images"}),
        *_IMAGES)),
    "train": ("a network prior from images (extra train); repeat the command to go on", _FILE, (
        ("minutes", {"read": positive, "default": 30.0, "help": "of training; default 30"}),
        ("symmetry", {"default": "none", "choices": ("none", "mirror", "square", "shift"), "help": "what leaves an "
                      "image as likely as it was: mirror left and right, the eight symmetries of the square, any "
                      "periodic shift; default none"}),
        ("work", {"metavar": "DIR", "help": "of the checkpoint; default FILE-training"}),
        *_IMAGES)),
    "check": ("whether a file is a prior, and a good one", "a prior file, or the name of a shipped prior", (
        ("images", {"metavar": "FILE.npy", "help": "held-out images, physical units, to judge it by"}),)),
    "import": ("a diffusion model you have (extra train)", "package.module:function that returns the torch module, or "
               "a folder saved by diffusers", (
        ("kind", {"required": True, "help": "what the network is: edm, edm-network, epsilon, v, sample, flow, "
                  "flow-from-noise or diffusers"}),
        ("out", {"required": True, "metavar": "FILE.onnx", "help": "the prior; its Jacobian is written beside it"}),
        ("shape", {"read": shape, "metavar": "C,H,W", "help": "of an event; diffusers' networks know it"}),
        ("schedule", {"default": "linear", "help": "of epsilon, v, sample: linear, scaled-linear, cosine, or the .npy "
                      "file of alphas_cumprod"}),
        ("scale", {"read": positive, "help": "your simulator receives scale * x + shift; default 1"}),
        ("shift", {"read": float, "help": "default 0"}),
        ("units", {"help": "of scale * x + shift, in words"}),
        ("images", {"metavar": "FILE.npy", "help": "like those it was trained on: write the reference for enkg-r too"}),
        ("no_jacobian", {"switch": True, "help": "do not try to export its Jacobian, which takes minutes"}))),
}


_KNOWN = ", ".join(problems.PROBLEMS)
COMMANDS = {  # name: (help, {positional argument: help}, options, those of the problems left out, or None for all)
    "solve": ("reconstruct one observation", {"problem?": f"one of {_KNOWN}; none with --forward"}, SOLVE,
              {"seed"}),  # one seed for particles and simulated noise
    "ask": ("the points of the next wave, for simulations that others make",
            {"run": "folder of the run; the first time with the options of solve, then alone"}, ASK, None),
    "tell": ("the predictions at the points that were asked",
             {"run": "folder of the run", "predictions": ".npy file, (J, m), in the order of the points"}, (), None),
    "compare": ("methods at equal cost on the same simulated data", {"problem": f"one of {_KNOWN}, simulated"}, COMPARE,
                {"item", "seed", "truth", "observation"}),
    "verify": ("measure the statements of THEORY.md", {}, VERIFY, None),
    "list": ("problems, methods and what each needs, priors", {}, (), None),
}


def of_problems(without=()):
    """[(group, name, spec)]: the options of the problems by who has them; `problems.build` reads their texts."""
    out = []
    for name, having in problems.options().items():
        if name not in without:
            own = name not in problems.SHARED
            group = ", ".join(problem for problem, _ in having) if own else "data"
            out.append((group, name, {"help": problems.help_of(name) if own else having[0][1].help}))
    return out
