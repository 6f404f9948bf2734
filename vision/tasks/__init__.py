"""Tasks about images and clips: of the generated world, of data sets in their standard formats, of shipped pictures."""
