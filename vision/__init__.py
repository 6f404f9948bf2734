"""Vision on tsprobe's core, written as any third party would: encoders and tasks, found through entry points."""
