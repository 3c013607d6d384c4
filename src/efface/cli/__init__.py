"""The command line: `main.py` holds the table of commands; a command's module is imported when it runs."""
