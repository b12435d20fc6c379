"""The command line's commands, one file each; `lcalens.cli` collects them."""
