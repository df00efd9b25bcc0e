"""``enkg``: the command line. It reads words, calls ``commands``, prints, and gives an exit code; nothing else does."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import warnings

from problems.files import read_array

from . import __version__
from .commands import compare, options, prior, queue, solve, verify, words
from .commands import list as listing
from .commands.progress import Bar
from .run import folder, report
from .run.verdict import FITTED


# ----------------------------------------------------------------------------------------------------------- the parser
class _Parser(argparse.ArgumentParser):
    def error(self, message):
        for found, ours in ((r"argument (.*)", r"\1"), (r"(.*)invalid choice: (.*) \(choose from (.*)\)",
                             r"\1got \2, expected one of \3"), (r"the following arguments are required: (.*)",
                             r"\1: got nothing, expected a value"), (r"unrecognized arguments: (.*)",
                             r"\1: got an argument that this command does not know, expected one of --help")):
            message = re.sub(f"^{found}$", ours, message)
        raise ValueError(message)


def parser():
    """The whole command line, from the tables of options, problems and methods."""
    top = _Parser(prog="enkg", description="Ensemble Kalman Diffusion Guidance (arXiv 2409.20175): inverse problems "
                  "with a diffusion prior and evaluations of the forward model only.")
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, parser_class=_Parser)

    for name, (about, positionals, table, without) in options.COMMANDS.items():
        command = commands.add_parser(name, help=about)
        _fill(command, positionals, table)
        if without is not None:
            _add_problems(command, without)
    verbs = commands.add_parser("prior", help="a prior of your own: fit, train, check, import").add_subparsers(
        dest="verb", required=True, parser_class=_Parser)
    for verb, (about, argument, table) in options.PRIOR.items():
        _fill(verbs.add_parser(verb, help=about, description=about), {"source": argument}, table)
    return top


def _fill(command, positionals, table):
    for name, about in positionals.items():
        command.add_argument(name.rstrip("?"), nargs="?" if name.endswith("?") else None, help=about)
    _add(command, table)


def _add(command, table):
    for name, spec in table:
        spec = dict(spec)
        read, switch = spec.pop("read", None), spec.pop("switch", False)
        kind = {"action": "store_true", "default": None} if switch else {"type": _kind(read)} if read else {}
        spec["help"] = spec.get("help", "").replace("%", "%%")
        command.add_argument("--" + name.replace("_", "-"), **spec, **kind)


def _add_problems(command, without):
    groups = {}
    for title, name, spec in options.of_problems(without):
        groups[title] = groups.get(title) or command.add_argument_group(title)
        _add(groups[title], [(name, spec)])


def _kind(read):
    """A reader of text whose ValueError "got ..., expected ..." argparse shows as it is."""
    def wrapped(text):
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return wrapped


# --------------------------------------------------------------------------------------------------------- the commands
def run_solve(given):
    if given.resume and given.problem is None and given.forward is None and given.out is not None:
        begun = folder.command(given.out)  # the folder knows its command
        given = parse([*begun, *given.words[1:]]) if begun else given
    request = words.solve_request(given)
    with contextlib.closing(Bar("update", given.quiet)) as bar:
        found = solve.solve(request, bar.advance)
    there = [name for name in folder.OUTPUTS if (request.out / name).exists()]
    where = f"  written to {request.out}/: {', '.join([*there, *found.summary.get('files', ())])}"
    code = 0 if given.quiet else _show(f"{report.text(found.summary)}\n{where}")
    return 1 if given.strict and found.summary["verdict"]["kind"] != FITTED else code


def run_ask(given):
    path, done, total = queue.ask(words.queue_request(given, parse))
    return _show(f"{path}: points of wave {done + 1} of {total + 1}; next: enkg tell {given.run} PREDICTIONS.npy")


def run_tell(given):
    request = words.queue_request(given, parse)
    found = queue.tell(request, read_array(given.predictions, "predictions", finite=False))
    return _show(f"next: enkg ask {given.run}" if found is None else report.text(found.summary))


def run_compare(given):
    request = words.compare_request(given)
    with contextlib.closing(Bar("run", given.quiet)) as bar:
        summary = compare.compare(request, lambda record, done, total: bar.advance(done, total, record),
                                  None if given.quiet else lambda sentence: print(sentence, flush=True))
    plot = ", pareto.png" if (request.out / "pareto.png").exists() else ""
    where = f"  written to {request.out}/: table.txt, table.csv, results.json, runs/{plot}"
    return 0 if given.quiet else _show(f"{compare.to_text(summary)}\n{where}")


def run_verify(given):
    return verify.verify(given.json, given.backend)


def run_prior(given):
    chosen = {name: getattr(given, name) for name, _ in options.PRIOR[given.verb][2]}
    if given.verb == "check":
        found = prior.check(given.source, **chosen)
        print(found.text)
        return 0 if found.ok else 1
    made = prior.VERBS[given.verb](given.source, **chosen)
    print(made.text)
    print(f"written: {', '.join(map(str, made.files))}")
    return 0


def run_list(given):
    return _show(listing.text())


CALLS = {"solve": run_solve, "ask": run_ask, "tell": run_tell, "compare": run_compare, "verify": run_verify,
         "prior": run_prior, "list": run_list}


# ----------------------------------------------------------------------------------------------------------- the entry
def parse(argv):
    """Parsed words, which they remember; ValueError for words that are not understood."""
    given = parser().parse_args(argv)
    given.words = list(argv)
    return given


def main(argv=None):
    """Entry point. Returns the exit code: 0 done, 1 a run or a statement failed, 2 bad input, 130 interrupted."""
    argv, given = sys.argv[1:] if argv is None else list(argv), None
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: _say(f"warning: {_line(message)}", 0)
        try:
            given = parse(argv)
            return CALLS[given.command](given)
        except BrokenPipeError:  # `enkg list | head`: the reader has what it wanted; nothing is left for the last flush
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0 if given.command == "list" else 1
        except FloatingPointError as error:
            return _say(f"stopped: {_line(error)}{words.kept(given)}", 1)
        except KeyboardInterrupt:
            return _say(f"interrupted{words.kept(given) or ' before anything was done'}", 130)
        except (ValueError, OSError, ImportError) as error:
            return _say(f"error: {_line(error)}", 2)


def _show(words):
    """Print; 0, or 1 where nothing can be written there: the results are in their folder all the same."""
    try:
        print(words)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left for the last flush
        return _say(f"stdout: not written ({error.strerror})", 1)
    return 0


def _say(words, code):
    if sys.stderr is not None:
        show = sys.modules["tqdm"].tqdm.write if "tqdm" in sys.modules else print  # beside the bar, not into it
        show(f"enkg: {words}", file=sys.stderr)
    return code


def _line(error):
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
