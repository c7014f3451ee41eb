use super::*;

const LEAST: &str = "setup = \"disk.toml\"\ndriver = \"disk\"\nseed = 1\nfaults = 10\n";

fn parse(text: &str) -> Result<Campaign, CampaignError> {
    let source = Source { name: "inject.toml".into(), text: text.into() };
    Campaign::parse(source, Path::new("folder"))
}

/// What is said of a file that is wrong: the words, what they point at, and the remedy.
fn refusal(text: &str) -> (String, String, String) {
    let error = parse(text).expect_err("it should be refused");
    let place = error.place().map_or("", |range| &text[range]);
    (error.to_string(), place.to_owned(), error.remedy().unwrap_or_default().to_owned())
}

fn refused_with(more: &str, words: &str, place: &str, remedy: &str) {
    let (said, at, help) = refusal(&format!("{LEAST}{more}"));
    assert!(said.contains(words), "{said}");
    assert_eq!(at, place, "{said}");
    assert!(help.contains(remedy), "{help}");
}

#[test]
fn four_keys_are_enough() {
    let campaign = parse(LEAST).unwrap();
    assert_eq!(campaign.setup, Path::new("folder/disk.toml"));
    assert_eq!(campaign.goal, Goal::Faults(10));
    assert_eq!(campaign.deadlines.hang, Us::from_ms(100));
    assert_eq!(campaign.deadlines.overdue, Us::from_ms(250));
    assert!(campaign.models.keys().all(|m| !m.name().starts_with("front-")));
    assert_eq!(campaign.models.len(), Model::ALL.len() - 8);
}

#[test]
fn a_family_gives_its_models_a_weight_and_a_model_has_the_last_word() {
    let campaign = parse(&format!("{LEAST}[models]\nkill = 0\nresource = 3\nlate = 1")).unwrap();
    let models: Vec<_> = campaign.models.iter().map(|(m, weight)| (m.name(), *weight)).collect();
    assert_eq!(
        models,
        [("late", 1), ("hang", 3), ("slow", 3), ("heap-exhaustion", 3), ("stack-overflow", 3)]
    );
}

#[test]
fn the_front_end_misbehaves_only_in_a_guest_that_is_named() {
    refused_with("[models]\nfront-late = 1", "needs a guest", "front-late", "front = \"NAME\"");
    let campaign = parse(&format!("front = \"bad\"\n{LEAST}[models]\ninterface = 1")).unwrap();
    assert_eq!(campaign.models.len(), 16);
}

#[test]
fn an_unknown_model_is_shown_with_the_nearest_one() {
    refused_with(
        "[models]\npointr = 1",
        "no fault model `pointr`",
        "pointr",
        "did you mean `pointer`?",
    );
}

#[test]
fn a_seed_out_of_range_is_shown() {
    let (said, at, help) = refusal(&LEAST.replace("seed = 1", "seed = -1"));
    assert!(said.contains("seed -1 is out of range"), "{said}");
    assert_eq!(at, "-1");
    assert!(help.contains("2^63 - 1"), "{help}");
    let (_, at, _) = refusal(&LEAST.replace("seed = 1", "seed = 9223372036854775808"));
    assert_eq!(at, "9223372036854775808");
}

#[test]
fn other_wrong_values_are_shown_where_they_are() {
    refused_with("activated = 5", "two goals", "5", "[limits] faults");
    refused_with("[deadlines]\nhang = 100", "no time", "100", "docs");
    refused_with("[deadlines]\nhang = \"0ms\"", "no time is always past", "\"0ms\"", "100ms");
    refused_with("[deadlines]\nwindow = \"200ms\"", "nothing overdue", "\"200ms\"", "more time");
    refused_with("[deadlines]\noverdue = \"90ms\"", "is over before", "\"90ms\"", "more time");
    refused_with("[load]\nblock = \"5K\"", "no block size", "\"5K\"", "multiple of 4K");
    refused_with("[load]\nreads-percent = 101", "out of range", "101", "0 to 100");
    refused_with("[limits]\nescapes = 0", "nothing to do", "0", "from 1 on");
    refused_with("[models]\nkill = -1", "no weight", "-1", "from 0");
    refused_with("[models]\nkill = 0", "no fault model has a weight", "[models]", "at least one");
    refused_with("[load]\ndeepth = 1", "unknown field", "deepth", "did you mean `depth`?");
    let (said, ..) = refusal(&LEAST.replace("faults = 10\n", ""));
    assert!(said.contains("no goal"), "{said}");
}

#[test]
fn deadlines_and_goals_leave_the_faults_as_they_are() {
    let identity = |more: &str| parse(&format!("{LEAST}{more}")).unwrap().identity();
    assert_eq!(identity(""), identity("[deadlines]\nwindow = \"2s\"\n[limits]\nfaults = 3"));
    assert_ne!(identity(""), identity("[models]\nkill = 1"));
    assert_ne!(identity(""), identity("[places]\nlibrary = 2"));
}

#[test]
fn the_example_is_a_campaign() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/campaigns/disk.toml");
    let campaign = Campaign::load(&path).unwrap();
    assert!(campaign.setup.exists(), "{}", campaign.setup.display());
    assert_eq!(campaign.goal, Goal::Activated(200));
}

#[test]
fn the_guide_has_every_model() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/fault-injection.md");
    let guide = std::fs::read_to_string(path).unwrap();
    let named = Model::ALL.iter().filter(|model| !model.name().starts_with("front-"));
    for model in named {
        assert!(guide.contains(&format!("| `{model}` |")), "{model}");
    }
}
