"""Packaging, read from settings.ini so that requirements are written down once."""
import runpy
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="], interpolation=None)
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

extras = {name: cfg[f"{name}_requirements"].split() for name in cfg["extras"].split()}
extras["all"] = [package for packages in extras.values() for package in packages]
extras["dev"] = extras["all"] + cfg["dev_requirements"].split()

readme = runpy.run_path(str(here / "tools" / "readme.py"))
description = (here / "README.md").read_text(encoding="utf-8")

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme["with_absolute_links"](description, cfg["git_url"], cfg["branch"]),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="Apache-2.0",
    url=cfg["git_url"],
    project_urls={
        "Documentation": cfg["doc_host"] + cfg["doc_baseurl"],
        "Changelog": f"{cfg['git_url']}/blob/{cfg['branch']}/CHANGELOG.md",
        "Issues": f"{cfg['git_url']}/issues",
    },
    keywords=cfg["keywords"],
    packages=find_packages(include=["bgcs", "bgcs.*"]),
    package_data={"": ["*.js", "*.css", "*.j2"]},  # what views run in the browser, and templates
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": ["bgcs=bgcs.runs.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Natural Language :: English",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13)),
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    zip_safe=False,
)
