"""Which choices each layer has, per device and model family. Installed as `automc.search_spaces`."""

if __name__ != "automc.search_spaces":
    raise ImportError(
        f"This folder is the package automc.search_spaces, not {__name__!r}: write `import automc.search_spaces` after `pip install .`."
    )
