"""Write the generated files: `python -m deploy.dashboards`, which is `make dashboards`."""

from __future__ import annotations

from deploy.dashboards.catalogue import files


def main() -> None:
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
