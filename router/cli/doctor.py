"""`triptych doctor`: looks at everything a start needs, and says what is wrong and how to mend it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from router.cli.checks import Finding, Level, environment_checks, lane_checks, model_checks, network_checks
from router.cli.overrides import deployment_config
from triptych.config import DeploymentConfig
from triptych.errors import ConfigurationError

_MARKS = {
    Level.GOOD: "[green]ok   [/green]",
    Level.NOTE: "[yellow]note [/yellow]",
    Level.BAD: "[red]wrong[/red]",
}


def run_doctor(file: Path | None, model: str | None) -> int:
    """Prints all findings; 1 when something that a start needs is missing."""
    findings: list[Finding] = []
    config = DeploymentConfig()
    try:
        config = deployment_config(file, model)
        findings.append(Finding("configuration", Level.GOOD, str(file) if file else "defaults and environment"))
    except ConfigurationError as error:
        findings.append(Finding("configuration", Level.BAD, str(error), "correct the key that is named"))
    findings += examine(config)
    console = Console(highlight=False, soft_wrap=True)
    for finding in findings:
        console.print(as_text(finding))
    wrong = [finding for finding in findings if finding.level is Level.BAD]
    if wrong:
        console.print(f"{len(wrong)} thing(s) keep Triptych from starting here.")
        return 1
    console.print("Triptych can start here: triptych demo")
    return 0


def examine(config: DeploymentConfig) -> list[Finding]:
    """Every check in turn; a check that fails by itself is a finding too."""
    groups: tuple[Callable[[DeploymentConfig], Iterable[Finding]], ...] = (
        environment_checks,
        lane_checks,
        model_checks,
        network_checks,
    )
    findings: list[Finding] = []
    for group in groups:
        try:
            findings += group(config)
        except Exception as error:
            findings.append(Finding(group.__name__, Level.BAD, f"{type(error).__name__}: {error}", "report this"))
    return findings


def as_text(finding: Finding) -> str:
    """One line, and one more where there is something to do. Never cut: paths and commands must stay whole."""
    line = f"{_MARKS[finding.level]}  {finding.what:<20} {escape(finding.found)}"
    return f"{line}\n{'':<28}-> {escape(finding.remedy)}" if finding.remedy else line
