"""TAB in PowerShell, for which click has no class: its words in, a line for each completion out.

The script works in Windows PowerShell 5.1 and in PowerShell 7. An argument that is empty is lost between 5.1
and a program, so the words travel in a variable, a line each, and with them the word that is being typed.
"""

from __future__ import annotations

import os

from click.shell_completion import CompletionItem, ShellComplete, add_completion_class

SOURCE = """\
Register-ArgumentCompleter -Native -CommandName %(prog_name)s -ScriptBlock {
    param($word, $ast, $cursor)
    $words = @($ast.CommandElements | Where-Object { $_.Extent.EndOffset -lt $cursor -or -not $word } |
        Where-Object { $_.Extent.StartOffset -lt $cursor } | ForEach-Object { $_.Extent.Text })
    $env:COMP_WORDS = $words -join "`n"
    $env:COMP_CWORD = $word
    $env:%(complete_var)s = "powershell_complete"
    try {
        & $ast.CommandElements[0].Extent.Text | ForEach-Object {
            $type, $value, $help = $_ -split "`t", 3
            if ($type -in "file", "dir") {
                Get-ChildItem -Path "$value*" -Directory:($type -eq "dir") | Resolve-Path -Relative |
                    ForEach-Object { [System.Management.Automation.CompletionResult]::new($_) }
            } else {
                [System.Management.Automation.CompletionResult]::new($value, $value, "ParameterValue", $help)
            }
        }
    } finally {
        Remove-Item Env:COMP_WORDS, Env:COMP_CWORD, Env:%(complete_var)s -ErrorAction SilentlyContinue
    }
}
"""


@add_completion_class
class PowerShellComplete(ShellComplete):
    """click's ``powershell_source`` and ``powershell_complete``."""

    name = "powershell"
    source_template = SOURCE

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words behind the program's name, without their quotes, and the one that is being typed."""
        words = [_bare(word) for word in os.environ.get("COMP_WORDS", "").splitlines()]
        return words[1:], _bare(os.environ.get("COMP_CWORD", ""))

    def format_completion(self, item: CompletionItem) -> str:
        """Type, value and help with tabs between; PowerShell refuses an empty help."""
        help_ = " ".join((item.help or "").split())
        return f"{item.type}\t{item.value}\t{help_ or item.value}"


def _bare(word: str) -> str:
    quoted = len(word) > 1 and word[0] == word[-1] and word[0] in "'\""
    return word[1:-1] if quoted else word
