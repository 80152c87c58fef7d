"""A recipe is found by what people type, and a missing one is answered with names."""

import pytest

from manticore.config import ConfigError, find_recipe, locate, recipe_kind, recipes_root


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A package with one recipe, and an empty working folder."""
    package = tmp_path / "site" / "manticore"
    recipe = package / "recipes" / "hybrids" / "quickstart.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text("kind: hybrid\n")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(locate, "_PACKAGE", package)
    return recipe


def test_the_checkout_holds_the_recipes_when_the_package_does_not():
    assert recipes_root().name == "recipes"
    assert recipes_root().is_dir()


@pytest.mark.parametrize("name", ["recipes/hybrids/quickstart.yaml", "hybrids/quickstart.yaml"])
def test_a_shipped_recipe_is_found_from_any_folder(shipped, name):
    assert find_recipe(name) == shipped


def test_a_file_in_the_working_folder_comes_first(shipped, tmp_path):
    own = tmp_path / "work" / "recipes" / "hybrids" / "quickstart.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("kind: mine\n")
    assert recipe_kind("recipes/hybrids/quickstart.yaml") == "mine"


def test_a_missing_recipe_suggests_the_nearest(shipped):
    with pytest.raises(ConfigError, match=r"Did you mean 'recipes/hybrids/quickstart\.yaml'\?"):
        find_recipe("hybrids/quickstrat.yaml")


def test_no_recipe_is_suggested_twice(shipped, monkeypatch):
    monkeypatch.chdir(shipped.parents[2])
    with pytest.raises(ConfigError) as error:
        find_recipe("recipes/hybrids/nothing.yaml")
    assert str(error.value).count("recipes/hybrids/quickstart.yaml") == 1


def test_a_folder_is_not_a_recipe(shipped, tmp_path):
    with pytest.raises(ConfigError, match="is a folder, not a recipe"):
        find_recipe(tmp_path)


def test_the_kind_is_read_and_checked(shipped, tmp_path):
    assert recipe_kind("hybrids/quickstart.yaml", ("hybrid", "zoo")) == "hybrid"
    with pytest.raises(ConfigError, match=r"Unknown kind 'hybrid' in .*Known: hybrids, zoo"):
        recipe_kind("hybrids/quickstart.yaml", ("zoo", "hybrids"))
    (tmp_path / "none.yaml").write_text("a: 1\n")
    with pytest.raises(ConfigError, match="does not say its kind"):
        recipe_kind(tmp_path / "none.yaml")
