"""What the site of the documentation needs besides its pages: files of the project that pages lead to.

Laws:
    * A page is written for the project's folders, where ``../conf/extensions.conf`` is beside it. On the site
      such a file stands below the site's own root, and a link to a folder is only its text.
    * A file that is not there is left to the site's own check of links.

Source: MkDocs, "Hooks": https://www.mkdocs.org/user-guide/configuration/#hooks
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT: Final = Path(__file__).resolve().parent.parent
_LINK: Final = re.compile(r"\[([^\]]+)\]\(((?:\.\./)*)([\w./-]+)\)")


def on_page_markdown(markdown: str, /, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead to the project's files where they stand on the site, which gets them by this."""
    folder = Path(config.docs_dir, page.file.src_uri).parent

    def on_site(found: re.Match[str]) -> str:
        text, up, rest = found.groups()
        target = (folder / up / rest).resolve()
        if target.is_dir():
            return text
        if not target.is_file() or target.is_relative_to(config.docs_dir):
            return found[0]
        path = target.relative_to(_ROOT).as_posix()
        if files.get_file_from_path(path) is None:
            files.append(File(path, str(_ROOT), config.site_dir, use_directory_urls=False))
        return f"[{text}]({'../' * (len(Path(page.file.src_uri).parts) - 1)}{path})"

    return _LINK.sub(on_site, markdown)
