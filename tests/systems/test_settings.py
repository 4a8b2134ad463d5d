"""Settings by dotted keys: each is listed, and a value is one of its type, or a sentence names key and value."""

import pytest

from fcdeploy.errors import InputError
from fcdeploy.systems import NAMES, get_system
from fcdeploy.systems.settings import list_settings, setting_of, settings_as_dict, with_settings

PSE = get_system("pse-gcn").recipe()
GCN_D = get_system("gcn-d").recipe()


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_listed_with_its_published_value(name: str) -> None:
    recipe = get_system(name).recipe()
    listed = list_settings(recipe)
    assert listed[0].key == "feature_dim"
    table = settings_as_dict(recipe)
    assert len(listed) == sum(len(part) if isinstance(part, dict) else 1 for part in table.values()) - 1
    for setting in listed:
        assert setting_of(recipe, setting.key) == setting.value
        assert with_settings(recipe, {setting.key: setting.value}) == recipe
        if not isinstance(setting.value, tuple):
            as_text = str(setting.value).lower() if isinstance(setting.value, bool) else str(setting.value)
            assert with_settings(recipe, {setting.key: as_text}) == recipe


def test_a_list_of_settings_says_what_each_has_to_be() -> None:
    kinds = {setting.key: setting.kind for setting in list_settings(PSE)}
    assert kinds["links.tau"] == "a number"
    assert kinds["neighborhood.hops"] == "a list of 2 values"
    assert kinds["features.normalize"] == "true or false"


@pytest.mark.parametrize(
    ("recipe", "key", "text", "value"),
    [
        (PSE, "links.tau", "0.8", 0.8),
        (PSE, "links.tau", "1", 1.0),
        (PSE, "links.tau", 1, 1.0),
        (PSE, "neighborhood.hops", "[20, 5]", (20, 5)),
        (PSE, "neighborhood.hops", [20, 5], (20, 5)),
        (PSE, "features.normalize", "false", False),
        (GCN_D, "segment.seed", "none", "none"),
        (GCN_D, "segment.seed", '"none"', "none"),
        (GCN_D, "segment.seed", "7", "7"),
        (GCN_D, "network.propagate_only", "true", True),
        (GCN_D, "network.propagate_only", "3", 3),
    ],
    ids=str,
)
def test_texts_are_read_as_toml_and_words_as_they_are(recipe, key, text, value) -> None:
    found = setting_of(with_settings(recipe, {key: text}), key)
    assert (found, type(found)) == (value, type(value))


def test_tables_and_lists_of_tables_are_values_too() -> None:
    changed = with_settings(GCN_D, {"proposals": "[{k = 3, merge = [{k = 4}]}]", "overlap": {"max_iou": 0.5}})
    assert [(name, level.k) for name, level in changed.levels()] == [
        ("proposals[0]", 3),
        ("proposals[0].merge[0]", 4),
    ]
    assert changed.overlap.max_iou == 0.5


@pytest.mark.parametrize(
    ("recipe", "values", "sentence"),
    [
        (PSE, {"links.tau": "many"}, "links.tau should be a number, found 'many'."),
        (PSE, {"links.tau": None}, "links.tau should be a number, found None."),
        (PSE, {"neighborhood.k": "2.0"}, "neighborhood.k should be a whole number, found 2.0."),
        (PSE, {"neighborhood.hops": "[20]"}, "neighborhood.hops should be a list of 2 values, found [20]."),
        (PSE, {"links": 3}, "links should be a table, found 3."),
        (PSE, {"links": {"tua": 3}}, "unknown key 'links.tua'; known here: k, tau."),
        (GCN_D, {"proposals": "[{k = 'x'}]"}, "proposals[0].k should be a whole number, found 'x'."),
        *(
            (
                PSE,
                {key: "1"},
                f"unknown key '{key}'; known for pse-gcn: feature_dim, features.normalize, neighborhood.k, "
                "neighborhood.hops, neighborhood.active, links.k, links.tau, tolerance.refined, "
                "tolerance.flipped_edges.",
            )
            for key in ("links.tua", "tau", "links.tau.x", "", "links.", "system")
        ),
    ],
    ids=str,
)
def test_an_unknown_key_and_a_wrong_type_are_named(recipe, values, sentence) -> None:
    with pytest.raises(InputError) as refused:
        with_settings(recipe, values, "--set")
    assert str(refused.value) == f"settings: {sentence}"
