"""Running a method: checkpoints, call counts, members that fail, figures of merit, verdict, report."""
