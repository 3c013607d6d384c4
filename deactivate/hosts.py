"""The hosts that edits lie on, for type checkers: this package imports none of them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..llm.host import Host as LanguageHost
    from ..t2i.host import ImageHost

    Host = LanguageHost | ImageHost
