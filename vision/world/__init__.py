"""A generated world with exact truth: pictures (`scenes`), clips (`clips`), and words about them (`words`)."""
