from tsprobe.cli import main

main()
