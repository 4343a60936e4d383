"""yt-dlp's extractors, made ready: imported once by the process that downloads are forked from.

Which of some 1,800 sites a URL belongs to is asked with as many patterns. Compiling them, and
loading what looks for videos on a page, is most of what a fresh process would do.
"""

import yt_dlp.extractor._extractors  # noqa: F401 (loading it is the purpose)
from yt_dlp.extractor import gen_extractor_classes

for site in gen_extractor_classes():
    site.suitable("https://127.0.0.1/")
