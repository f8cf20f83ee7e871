"""The command line: parses, calls a public function, renders. One verb per file; whatever it does, Python can do too."""
