"""Are the intervals and tests right? ``python benchmarks/intervals.py``; see coverage_simulation.py."""

from coverage_simulation import main

if __name__ == "__main__":
    main()
