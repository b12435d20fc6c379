"""The one error that lcalens raises for an argument."""

# The pages docs/errors/*.md, and the arguments that they are about, besides the one of their own name.
_PAGES = {
    "answers": ("true", "false", "prompt", "prompts", "texts", "join"),
    "chat": (),
    "contrast": (),
    "defence": ("negatives", "begins"),
    "facts": (),
    "folders": ("out", "folder"),
    "heads": (),
    "metric": (),
    "model": (),
    "positions": ("span", "spans"),
    "schemes": ("scheme", "control"),
    "site": (),
    "source": (),
}
_PAGE_OF = {name: page for page, names in _PAGES.items() for name in (page, *names)}


class LcalensError(ValueError):
    """An argument lcalens cannot use: the message names it, its value and the fix.

    A traceback ends with the page of the documentation that says more about it.

    Example:
        >>> from lcalens import LatentConcepts
        >>> try:
        ...     LatentConcepts(m=-1)
        ... except LcalensError as error:
        ...     print(str(error).partition(":")[0])
        m
    """

    def __init__(self, *message: object):
        super().__init__(*message)
        argument = str(self).partition(":")[0]
        self.add_note(f"In lcalens's documentation: errors/{_PAGE_OF.get(argument, 'index')}.")
