"""`python -m agmh_fast …` is `agmh-fast …`."""

from agmh_fast.cli import main

raise SystemExit(main())
