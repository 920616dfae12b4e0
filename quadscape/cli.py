"""The `quadscape` command."""

import argparse
import codecs
import io
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quadscape.errors import ConfigError, QuadscapeError, StoreError
from quadscape.refusals import forbidden, in_words

if TYPE_CHECKING:
    from quadscape.data.sources import Census
    from quadscape.planning.experiment import Experiment
    from quadscape.results.purge import Removable


def _status(arguments: argparse.Namespace) -> int:
    from quadscape.cluster.activity import format_activity, known_to_slurm, look
    from quadscape.results.status import find_stages, format_status, stage_status
    from quadscape.stage.files import ASIDE, PURGED

    activity = look(Path.cwd())
    path = Path(arguments.path or "results")
    # At the very start there is a controller, but no results.
    begun = path.is_dir() or arguments.path is not None or activity.is_empty
    hidden: list[OSError] = []
    directories = find_stages(path, hidden.append) if begun else []
    stages = [stage_status(directory) for directory in directories]
    stages = known_to_slurm(stages, activity.jobs)
    closed = [forbidden(Path(error.filename)) or f"{error.filename} ({error.strerror})" for error in hidden]
    told = [directory / name for directory in directories for name in ("manifest.json", PURGED, *ASIDE)]
    closed += filter(None, map(forbidden, told))
    unread = "\n".join(f"not looked at: {sentence}" for sentence in closed)
    blocks = [format_activity(activity), format_status(stages), unread]
    print("\n\n".join(block for block in blocks if block))
    return 1 if closed else activity.exit_code(stages)


def _logs(arguments: argparse.Namespace) -> int:
    from quadscape.cluster.job_logs import format_logs

    print(format_logs(Path.cwd(), arguments.rule))
    return 0


def _submit(arguments: argparse.Namespace) -> int:
    from quadscape.cluster.submission import submit

    print(
        submit(
            Path.cwd(),
            arguments.arguments,
            local=arguments.local,
            partition=arguments.partition,
            account=arguments.account,
            qos=arguments.qos,
            minutes=arguments.minutes,
        )
    )
    return 0


def _partitions(_: argparse.Namespace) -> int:
    from quadscape.cluster.partitions import describe_partitions

    print(describe_partitions())
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from quadscape.results.verify import Forbidden, Misplaced, find_unrecorded, verify_results
    from quadscape.stage.files import PURGED
    from quadscape.stage.finished import load_purged

    checked = problems = misplaced = unread = 0
    for path, problem in verify_results(Path(arguments.path)):
        checked += not isinstance(problem, Forbidden)
        if isinstance(problem, Forbidden):
            unread += 1
            print(f"UNREAD  {path}: {problem}", flush=True)
        elif isinstance(problem, Misplaced):
            misplaced += 1
            print(f"OTHER   {path}: {problem}", flush=True)
        elif problem is not None:
            problems += 1
            print(f"DAMAGED {path}: {problem}", flush=True)
        elif (path / PURGED).exists() and (purged := load_purged(path)) is not None:
            print(f"ok      {path} ({' and '.join(purged.arrays)} purged on {purged.date})", flush=True)
        else:
            print(f"ok      {path}", flush=True)
    counts = [
        (problems, "damaged"),
        (misplaced, "whole, but not of what lies beside it"),
        (unread, "not checked, since they may not be read"),
    ]
    found = ", ".join(f"{count} {what}" for count, what in counts if count) or "everything is as it was written"
    print(f"{checked} {'result' if checked == 1 else 'results'} checked: {found}")
    if problems:
        print(
            "What is damaged is made again when something needs it, after `quadscape repair --yes`; tables and figures "
            "that were made from it stay valid, so that the workflow may say that nothing is to be done."
        )
    if unrecorded := len(find_unrecorded(Path(arguments.path))):
        print(
            f"not checked: {unrecorded} figures, pages or findings of an earlier version, which kept no checksums of "
            "them; remove them, and the workflow draws them again"
        )
    return 1 if problems or misplaced or unread else 0


def _findings(arguments: argparse.Namespace) -> int:
    from quadscape.findings.report import format_findings, from_json

    root = Path(arguments.path)
    pages = sorted(root.rglob("findings.json")) if root.is_dir() else [root]
    if not pages or not all(page.is_file() for page in pages):
        raise StoreError(f"There are no findings in {root}; run the workflow, which writes them last.")
    for page in pages:
        print(page.parent)
        print(format_findings(from_json(page.read_text(encoding="utf-8"))))
    return 0


def _costs(arguments: argparse.Namespace) -> int:
    from quadscape.results.costs import costs, format_costs

    print(format_costs(costs(Path(arguments.path))))
    return 0


def _repair(arguments: argparse.Namespace) -> int:
    from quadscape.results.repair import find_damaged, give_up

    count = kept = 0
    for found in find_damaged(Path(arguments.path)):
        count += 1
        print(f"DAMAGED {found.path}: {found.problem}", flush=True)
        if found.given_up is None:
            kept += 1
            print(f"kept    {found.path}: {found.kept_for}", flush=True)
            continue
        if arguments.yes:
            give_up(found)
        print(f"{'removed' if arguments.yes else 'remove '} {found.given_up}: {found.later}", flush=True)
    if not count:
        print("nothing is damaged")
    elif arguments.yes:
        print("Run the workflow: it makes again what was given up.")
    elif count > kept:
        print("Nothing was removed; `quadscape repair --yes` removes this, and the workflow then makes it again.")
    return 1 if kept or (count and not arguments.yes) else 0


def _purge(arguments: argparse.Namespace) -> int:
    from quadscape.amounts import format_bytes
    from quadscape.cluster.plans import planned_reads
    from quadscape.measures.earlier import replaced_tables
    from quadscape.results.purge import cost_again, find_removable, place_of, purge

    freed = 0
    places: dict[Path, list[Removable]] = {}
    for found in find_removable(Path(arguments.path), planned_reads(Path.cwd())):
        if found.kept_for:
            print(f"kept    {format_bytes(found.size_bytes):>8}  {found.directory}: {found.kept_for}", flush=True)
            continue
        freed += found.size_bytes
        if not found.superseded:
            places.setdefault(place_of(found), []).append(found)
        if arguments.yes:
            purge(found, print)
        word = "removed" if arguments.yes else "remove "
        reason = f"all of it, {found.superseded}" if found.superseded else found.what
        print(
            f"{word} {format_bytes(found.size_bytes):>8}  {found.directory}{f': {reason}' if reason else ''}",
            flush=True,
        )
    for path in replaced_tables(Path(arguments.path)):
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        freed += size
        if arguments.yes:
            shutil.rmtree(path)
        word = "removed" if arguments.yes else "remove "
        print(f"{word} {format_bytes(size):>8}  {path}: of an earlier version, and taken over", flush=True)
    for place, removed in places.items():
        print(f"again   {place}: {cost_again(place, [] if arguments.yes else removed)}")
    if arguments.yes:
        print(f"freed {format_bytes(freed)}; tables, figures, manifests and verification results in use are kept")
    elif freed:
        print(f"would free {format_bytes(freed)}; nothing was removed: add --yes to do it")
    else:
        print("nothing to free")
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    from quadscape.data.sources import census
    from quadscape.planning.experiment_file import load_experiment
    from quadscape.planning.problem import Problem, check_places
    from quadscape.planning.targets import Targets

    experiment: Experiment = load_experiment(arguments.config)
    check_places(experiment)
    problem = Problem.of(experiment)
    problem.check_dense()
    data = problem.data
    print(
        f"{arguments.config} is valid: {problem.sizes_text()}; {data.training:,} training, "
        f"{data.validation:,} validation and {data.test:,} test images of {'×'.join(map(str, data.shape))}; "
        f"{len(experiment.runs)} runs, {sum(len(run.checkpoints) for run in experiment.runs)} checkpoints."
    )
    for sentence in Targets(problem).clipped():
        print(sentence)
    if problem.source_problem:
        print(f"The data store made before is used, since its source cannot be: {problem.source_problem}")
        print(f"{len(data.classes)} classes: {', '.join(_some(data.classes))}")
    else:
        _print_census(census(experiment.data))
    if arguments.thorough:
        from quadscape.training.extraction import check_factory

        networks = experiment.networks()
        for model, runs in networks:
            who = f"The network of run '{runs[-1].name}'" if len(networks) > 1 else "The network"
            found = check_factory(model, experiment.loss, experiment.seed, data)
            print(f"{who} was {found.sentence()}")
    return 0


def _print_census(found: "Census") -> None:
    """Classes with their counts, and what of an image folder is not used."""
    print(f"{len(found.classes)} classes (training / validation / test images):")
    for line in _some(
        [f"  {name}: {a} / {b} / {c}" for name, (a, b, c) in zip(found.classes, found.counts, strict=True)]
    ):
        print(line)
    if found.leftovers:
        print(f"{len(found.leftovers)} entries of the folder are not used: {', '.join(_some(found.leftovers))}")


_SHOWN = 12


def _some(values: Sequence[str]) -> list[str]:
    """Values to show: all of a few; of many, the first and the last."""
    if len(values) <= _SHOWN:
        return list(values)
    half = _SHOWN // 2
    return [*values[:half], f"  … {len(values) - 2 * half} more …", *values[-half:]]


def _estimate(arguments: argparse.Namespace) -> int:
    from quadscape.planning.estimate import estimate_experiment, format_estimates
    from quadscape.planning.experiment_file import load_experiment
    from quadscape.planning.problem import Problem

    problem = Problem.of(load_experiment(arguments.config))
    problem.check_dense()
    devices = (arguments.device,) if arguments.device else ("cpu", "cuda")
    print(f"{arguments.config}: {problem.sizes_text()}, {problem.data.training:,} training images")
    print(format_estimates(estimate_experiment(problem, devices)))
    return 0


def _own(arguments: argparse.Namespace) -> int:
    """Scores or surfaces of a network of the user's own."""
    import yaml

    from quadscape.library import own
    from quadscape.library.measuring import measure_options
    from quadscape.library.scores import scores, surfaces
    from quadscape.measures import MEASURES

    measured, options = MEASURES[arguments.measure], {}
    texts = {option.name for option in measured.options if isinstance(option.default, str)}
    for given in arguments.option:
        name, equals, value = given.partition("=")
        if not equals:
            raise ConfigError(f"--option is '{given}'; valid is name=value, such as reach=0.5.")
        # As text, 1:2 is not the number 62 that YAML reads, in base 60.
        options[name] = value if name in texts else yaml.safe_load(value)
    keywords = yaml.safe_load(arguments.arguments)
    if not isinstance(keywords, dict):
        raise ConfigError(f"--arguments is '{arguments.arguments}'; valid is a mapping, such as '{{width: 8}}'.")
    parameters = Path(arguments.parameters) if arguments.parameters else None
    where = {"device": arguments.device, "dtype": arguments.dtype}
    loss = own.own_objective(arguments.model, Path(arguments.images), parameters, keywords, **where)
    chosen = measure_options(measured, options, loss)
    print(own.estimate(arguments.measure, loss, chosen), flush=True)
    if arguments.estimate:
        return 0

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if arguments.measure == "surface":
        tables = surfaces(loss, chosen, say, own.Progress(say, "rows"))
        print(own.format_planes(tables["surface_planes"]))
    else:
        tables = scores(loss, loss, chosen, say, own.Progress(say, "probes"))
        print(own.format_scores(tables["ruggedness"]))
    if arguments.out:
        print("\n".join(str(path) for path in own.write_found(tables, Path(arguments.out))))
    return 0


def _add_own(parser: argparse.ArgumentParser, measure: str, *, out: str | None) -> None:
    parser.add_argument("--model", required=True, help="package.module:function, or a model of torchvision: resnet18")
    parser.add_argument("--images", required=True, help="folder of one sub-folder of images per class")
    parser.add_argument("--parameters", help="file saved with torch.save(model.state_dict(), …); default: initial ones")
    parser.add_argument("--arguments", default="{}", help="keyword arguments of the function, as YAML")
    option = f"name=value, of the measure {measure}; repeatable"
    parser.add_argument("--option", action="append", default=[], help=option)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float64", help="default: float64")
    parser.add_argument("--estimate", action="store_true", help="say sizes and time, and stop")
    where = f"folder for tables and figures (default: {out or 'none are written'})"
    parser.add_argument("--out", default=out, help=where)
    parser.set_defaults(run=_own, measure=measure)


def _reference(_: argparse.Namespace) -> int:
    from quadscape.planning.reference import configuration_reference

    # It becomes a file of the documentation, which is UTF-8 whatever the locale is.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="strict")
    print(configuration_reference(), end="")
    return 0


def _add_slurm(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    submit = commands.add_parser(
        "submit",
        help="keep snakemake at work for days: a controller that goes on after kills, time limits and preemption",
        usage="quadscape submit [--local] [--partition P] [--account A] [--qos Q] [--minutes M] -- <snakemake "
        "arguments>",
    )
    submit.add_argument("--local", action="store_true", help="as a process of this machine, not as a small SLURM job")
    submit.add_argument("--partition", help="of the controller's job (default: the profile's, without GPUs)")
    submit.add_argument("--account", help="of the controller's job (default: the profile's)")
    submit.add_argument("--qos", help="of the controller's job (default: what SBATCH_QOS says, or SLURM)")
    submit.add_argument("--minutes", type=int, help="after which the controller is queued again (default: 1440)")
    submit.add_argument("arguments", nargs="*", help="snakemake's, after --")
    taken = "; `quadscape status` tells whether the controller was taken all the same"
    submit.set_defaults(run=_submit, interrupted=taken)
    partitions = commands.add_parser(
        "partitions",
        help="where SLURM's jobs may go, as YAML to be looked through: quadscape partitions > "
        "profiles/slurm/partitions.yaml",
    )
    partitions.set_defaults(run=_partitions)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quadscape", description="Exact loss landscapes of 100k-parameter networks.")
    commands = parser.add_subparsers(required=True, metavar="command")
    status = commands.add_parser(
        "status",
        help="controller, head, jobs, and progress, rate and time left of every long stage",
        description="Exit code: 0 all that has begun is complete; 3 something is queued or running; 4 nothing is at "
        "work and something is unfinished or the last head did not end well; 1 an error.",
    )
    status.add_argument("path", nargs="?", help="where to look for stages (default: results)")
    status.set_defaults(run=_status)
    logs = commands.add_parser("logs", help="newest lines of the logs of a rule's jobs")
    logs.add_argument("rule", help="for example compute_eigenbasis, or controller")
    logs.set_defaults(run=_logs)
    spent = commands.add_parser("costs", help="jobs and CPU time that an experiment took, by section of the report")
    spent.add_argument("path", help="folder of the experiment's logs: logs/<name>")
    spent.set_defaults(run=_costs)
    _add_slurm(commands)
    findings = commands.add_parser("findings", help="what was found, in words, with verdicts on published results")
    findings.add_argument("path", nargs="?", default="results", help="where to look (default: results)")
    findings.set_defaults(run=_findings)
    verify = commands.add_parser("verify", help="read every store and compare it with its checksums")
    verify.add_argument("path", nargs="?", default="results", help="where to look (default: results)")
    verify.set_defaults(run=_verify)
    repair = commands.add_parser(
        "repair",
        help="give up what is damaged, and no more than that, so that the workflow makes it again in place; lists it, "
        "and removes with --yes",
    )
    repair.add_argument("path", nargs="?", default="results", help="where to look (default: results)")
    repair.add_argument("--yes", action="store_true", help="remove what is listed")
    repair.set_defaults(run=_repair)
    purge = commands.add_parser(
        "purge",
        help="free the disk of results that were set aside, and of Hessians, eigenbases and losses of single examples "
        "whose tables are made; lists them, and removes with --yes",
    )
    purge.add_argument("path", nargs="?", default="results", help="where to look (default: results)")
    purge.add_argument("--yes", action="store_true", help="remove what is listed")
    purge.set_defaults(run=_purge)
    validate = commands.add_parser("validate", help="check an experiment file, its data source and its model")
    validate.add_argument("config", nargs="?", default="config.yaml", help="experiment file (default: config.yaml)")
    validate.add_argument(
        "--thorough",
        action="store_true",
        help="also differentiate the network on a few random images, as is done when a checkpoint is made",
    )
    validate.set_defaults(run=_validate)
    estimate = commands.add_parser("estimate", help="memory, disk and time of every stage, before anything is queued")
    estimate.add_argument("config", nargs="?", default="config.yaml", help="experiment file (default: config.yaml)")
    estimate.add_argument("--device", choices=("cpu", "cuda"), help="only this one (default: both)")
    estimate.set_defaults(run=_estimate)
    scores = commands.add_parser(
        "scores",
        help="how rugged is the loss of a network of your own? one table, without an experiment (docs/ruggedness.md)",
    )
    _add_own(scores, "ruggedness", out=None)
    surface = commands.add_parser(
        "surface",
        help="the loss of a network of your own on planes: figures, and a page that can be turned (docs/views.md)",
    )
    _add_own(surface, "surface", out="surface")
    reference = commands.add_parser("reference", help="print docs/configuration.md")
    reference.set_defaults(run=_reference)
    return parser


_PLAIN = {
    **{
        "█": "#",
        "░": ".",
        "×": "x",
        "…": "...",
        "–": "-",
        "—": "-",
        "−": "-",
        "·": "*",
        "→": "->",
        "²": "^2",
        "³": "^3",
    },
    **{"θ": "theta", "λ": "lambda", "η": "eta", "δ": "delta", "≤": "<=", "≥": ">=", "⁶": "^6", "½": "1/2", "é": "e"},
}


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Writes what a terminal's encoding lacks in letters that all have."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(letter, ascii(letter)[1:-1]) for letter in text), error.end


def _write_in_any_locale() -> None:
    codecs.register_error("plainly", _plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plainly")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; by default the process's.

    Returns:
        Exit code: 0 fine, 1 an error (one sentence on standard error) or damage found; 3 and 4: see `status`; 130
        interrupted.

    Raises:
        OSError: What is a defect, and keeps its traceback: no missing right and no full disk.
    """
    _write_in_any_locale()
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print(f"quadscape: interrupted{getattr(arguments, 'interrupted', '')}", file=sys.stderr)
        return 130
    except OSError as error:
        if not (sentence := in_words(error)):
            raise
        problem = sentence
    except QuadscapeError as error:
        problem = str(error)
    # Names of files may hold line breaks.
    print(f"quadscape: {problem}".replace("\n", "\\n"), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
