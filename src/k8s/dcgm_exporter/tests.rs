//! Tests on text as exporters of the versions 3.3 to 4.8 print it: labels of a GPU, then `hostname` (`Hostname` before 4.7),
//! then labels from the file of counters, then those of a pod.

use proptest::prelude::*;

use super::*;

const UUID: &str = "GPU-3e095815-2d4a-4d2e-8b6f-1f5b7a3c9d10";

fn mib(mib: u64) -> Vram {
    Vram::from_mib(mib)
}

/// A line of a GPU, with more labels.
fn line(metric: &str, gpu: u32, more: &str, value: &str) -> String {
    let uuid = format!("{}{gpu}", &UUID[..UUID.len() - 1]);
    format!(
        "DCGM_FI_DEV_FB_{metric}{{gpu=\"{gpu}\",UUID=\"{uuid}\",pci_bus_id=\"00000000:07:00.0\",device=\"nvidia{gpu}\",\
         modelName=\"NVIDIA H100 80GB HBM3\"{more}}} {value}\n"
    )
}

const HOST: &str = ",hostname=\"gpu-0\",DCGM_FI_DRIVER_VERSION=\"580.159.04\"";

fn read(text: &str) -> Result<Exposition, Unreadable> {
    let mut scan = Scan::default();
    scan.feed(text.as_bytes())?;
    scan.finish()
}

/// The amounts of the only GPU: total, reserved, used.
fn memory(text: &str) -> Result<(u64, Option<u64>, u64), String> {
    let [gpu] = read(text).map_err(|why| why.to_string())?.gpus.try_into().expect("one GPU");
    let memory = gpu.memory.map_err(|why| why.to_string())?;
    Ok((memory.total.mib(), memory.reserved.map(Vram::mib), memory.used.mib()))
}

fn refused(text: &str) -> String {
    read(text).expect_err(text).to_string()
}

#[test]
fn a_page_of_an_exporter_is_read() {
    let mut page = String::new();
    for (metric, help, values) in [
        ("FREE", "Framebuffer memory free (in MiB).", ["71705", "81079"]),
        ("USED", "Framebuffer memory used (in MiB).", ["9374", "0"]),
        ("RESERVED", "Framebuffer memory reserved (in MiB).", ["480", "480"]),
    ] {
        page += &format!("# HELP DCGM_FI_DEV_FB_{metric} {help}\n# TYPE DCGM_FI_DEV_FB_{metric} gauge\n");
        page += &[line(metric, 0, HOST, values[0]), line(metric, 1, HOST, values[1])].concat();
        page += "# HELP DCGM_FI_DEV_SM_CLOCK SM clock frequency (in MHz).\n# TYPE DCGM_FI_DEV_SM_CLOCK gauge\n";
        page += "DCGM_FI_DEV_SM_CLOCK{gpu=\"0\",UUID=\"GPU-x\"} 1980\nDCGM_FI_DEV_FB_USED_PERCENT{gpu=\"0\"} 0.11\n";
    }
    let seen = read(&page).expect("a page");
    assert_eq!(seen.driver.as_deref(), Some("580.159.04"));
    let rows: Vec<String> = seen
        .gpus
        .iter()
        .map(|gpu| format!("{} {} {} {} {:?}", gpu.index, gpu.uuid, gpu.product, gpu.mig, gpu.memory))
        .collect();
    insta::assert_snapshot!(rows.join("\n"), @r"
    0 GPU-3e095815-2d4a-4d2e-8b6f-1f5b7a3c9d10 NVIDIA H100 80GB HBM3 false Ok(GpuMemory { total: Vram(81559), reserved: Some(Vram(480)), used: Vram(9374) })
    1 GPU-3e095815-2d4a-4d2e-8b6f-1f5b7a3c9d11 NVIDIA H100 80GB HBM3 false Ok(GpuMemory { total: Vram(81559), reserved: Some(Vram(480)), used: Vram(0) })
    ");
}

#[test]
fn a_reserve_and_a_total_may_be_absent() {
    let (used, free) = (line("USED", 0, "", "9374"), line("FREE", 0, "", "71705"));
    let (reserved, total) = (line("RESERVED", 0, "", "480"), line("TOTAL", 0, "", "81559"));
    let base = [used.as_str(), &free].concat();
    assert_eq!(memory(&base), Ok((81_079, None, 9_374)), "unknown is not zero");
    assert_eq!(memory(&[base.as_str(), &reserved].concat()), Ok((81_559, Some(480), 9_374)));
    assert_eq!(memory(&[base.as_str(), &total].concat()), Ok((81_559, None, 9_374)));
    assert_eq!(memory(&[base.as_str(), &total, &reserved].concat()), Ok((81_559, Some(480), 9_374)));
    for (present, absent) in [(used, "DCGM_FI_DEV_FB_FREE"), (free, "DCGM_FI_DEV_FB_USED")] {
        let why = memory(&present).expect_err("half of it is missing");
        assert!(why.contains(&format!("it prints no {absent} of this GPU")), "{why}");
    }
}

/// Time-slicing: an exporter repeats the amounts of a GPU for each pod on it, and newer ones print the use of each pod too.
#[test]
fn lines_that_name_pods_neither_add_up_nor_hide_the_amounts_of_the_gpu() {
    let pod = |name: &str| format!("{HOST},container=\"main\",namespace=\"ml\",pod=\"{name}\",vgpu=\"0\"");
    let of = |metric: &str, value: &str| ["a", "b"].map(|name| line(metric, 0, &pod(name), value)).concat();
    let one_pod = line("USED", 0, &pod("a"), "9374") + &line("FREE", 0, &pod("a"), "71705");
    assert_eq!(memory(&one_pod), Ok((81_079, None, 9_374)));
    let repeated = of("USED", "9374") + &of("FREE", "71705");
    assert_eq!(memory(&repeated), Ok((81_079, None, 9_374)));
    let each = line("USED", 0, &pod("a"), "8868") + &line("USED", 0, &pod("b"), "0");
    let with_each = [line("USED", 0, HOST, "9374"), each.clone(), of("FREE", "71705")].concat();
    assert_eq!(memory(&with_each), Ok((81_079, None, 9_374)));
    let why = memory(&(each + &of("FREE", "71705"))).expect_err("which of them is that of the GPU?");
    assert!(why.contains("it prints DCGM_FI_DEV_FB_USED of this GPU with different values"), "{why}");
}

#[test]
fn a_series_that_is_there_twice_is_read_only_if_both_agree() {
    let free = line("FREE", 0, "", "71705");
    let twice = |one: &str, other: &str| {
        memory(&[&line("USED", 0, "", one), &line("USED", 0, "", other), free.as_str()].concat())
    };
    assert_eq!(twice("9374", "9374.0"), Ok((81_079, None, 9_374)));
    assert!(twice("9374", "9375").is_err_and(|why| why.contains("different values")));
    assert!(twice("9374", "NaN").is_err_and(|why| why.contains("different values")));
    // A third line does not mend it.
    let thrice = [line("USED", 0, "", "1"), line("USED", 0, "", "2"), line("USED", 0, "", "1"), free].concat();
    assert!(memory(&thrice).is_err());
}

#[test]
fn a_value_that_is_no_amount_makes_its_gpu_unreadable_and_no_other() {
    for (value, why) in [
        ("NaN", "is \"NaN\", which is no amount"),
        ("+Inf", "no amount"),
        ("-1", "no amount"),
        ("ERROR - FAILED TO CONVERT TO STRING", "is \"ERROR\", which is no amount"),
        ("9223372036854775792", "is more than any GPU has"),
        ("16777217", "is more than any GPU has"),
        ("1e300", "is more than any GPU has"),
    ] {
        let bad = line("USED", 0, "", value) + &line("FREE", 0, "", "1");
        let page = bad + &line("USED", 1, "", "5") + &line("FREE", 1, "", "1");
        let gpus = read(&page).expect("a page").gpus;
        let unreadable = gpus[0].memory.as_ref().expect_err(value).to_string();
        assert!(unreadable.contains(why) && unreadable.contains("DCGM_FI_DEV_FB_USED"), "{value}: {unreadable}");
        assert!(gpus[1].memory.is_ok());
    }
    let exact = |used: &str, free: &str| memory(&(line("USED", 0, "", used) + &line("FREE", 0, "", free)));
    assert_eq!(exact("9.374e+03 1764512345678", "71705.9"), Ok((81_079, None, 9_374)), "floats, and a time");
    assert_eq!(exact("9373.5", "71705"), Ok((81_079, None, 9_374)), "what is taken is rounded up");
    assert!(exact("0", "0").is_err_and(|why| why.contains("contradict")));
}

#[test]
fn mig_devices_take_the_place_of_their_gpu_and_have_no_uuid() {
    let part = |id: &str, profile: &str| format!(",GPU_I_PROFILE=\"{profile}\",GPU_I_ID=\"{id}\"{HOST}");
    let mut page = line("USED", 1, HOST, "7") + &line("FREE", 1, HOST, "81072") + &line("USED", 0, HOST, "100");
    for (id, profile, used) in [("10", "1g.10gb", "50"), ("9", "3g.40gb", "60")] {
        page += &(line("USED", 0, &part(id, profile), used) + &line("FREE", 0, &part(id, profile), "9000"));
    }
    let gpus = read(&page).expect("a page").gpus;
    let rows: Vec<String> = gpus.iter().map(|gpu| format!("{} {} {}", gpu.index, gpu.mig, gpu.product)).collect();
    let model = "NVIDIA H100 80GB HBM3";
    assert_eq!(
        rows,
        [format!("0 true {model} MIG 3g.40gb"), format!("0 true {model} MIG 1g.10gb"), format!("1 false {model}")]
    );
    assert_eq!(gpus.iter().map(|gpu| gpu.uuid.is_empty()).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(gpus[0].memory, Ok(GpuMemory { total: mib(9_060), reserved: None, used: mib(60) }));
}

#[test]
fn what_is_no_page_of_an_exporter_is_refused_with_the_line() {
    let long = format!("DCGM_FI_DEV_FB_USED{{gpu=\"{}\"}} 1\n", "0".repeat(MAX_LINE));
    let many: String =
        (0..=MAX_GPUS).map(|n| format!("DCGM_FI_DEV_FB_USED{{gpu=\"0\",UUID=\"GPU-{n}\"}} 1\n")).collect();
    for (page, why) in [
        ("", "it prints neither DCGM_FI_DEV_FB_USED nor DCGM_FI_DEV_FB_FREE of any GPU"),
        ("<html><body>GPU Exporter</body></html>", "it prints neither"),
        ("dcgm_fb_used{gpu=\"0\",uuid=\"GPU-a\"} 5\n", "it prints neither"),
        ("# \nDCGM_FI_DEV_FB_USED 5\n", "line 2: it has no label UUID"),
        ("DCGM_FI_DEV_FB_USED{gpu=\"0\"} 5", "line 1: it has no label UUID"),
        ("DCGM_FI_DEV_FB_USED{UUID=\"GPU-a\"} 5", "line 1: its label gpu is no index of a GPU"),
        ("DCGM_FI_DEV_FB_USED{gpu=\"70000\",UUID=\"GPU-a\"} 5", "line 1: its label gpu is no index of a GPU"),
        ("DCGM_FI_DEV_FB_USED{gpu=\"0\",UUID=\"../etc\"} 5", "line 1: \"../etc\" is no UUID of a GPU"),
        ("DCGM_FI_DEV_FB_USED{gpu=\"0\",UUID=\"GPU-a\"}\n", "line 1: DCGM_FI_DEV_FB_USED has no value"),
        ("DCGM_FI_DEV_FB_USED{gpu=\"0\",UUID=\"GPU-a", "line 1: label \"UUID\" has no closing quote"),
        ("DCGM_FI_DEV_FB_USED{gpu=0,UUID=\"GPU-a\"} 5", "line 1: label \"gpu\" is not in quotes"),
        ("DCGM_FI_DEV_FB_USED{gpu=\"0\", 5", "line 1: its labels do not end"),
        (&long, "line 1 has more than 64 KiB"),
        (&many, "line 257: it is about more than 256 GPUs"),
    ] {
        let refused = refused(page);
        assert!(refused.contains(why), "{}: {refused}", cut(page));
    }
    let mut scan = Scan::default();
    assert!(scan.feed(b"DCGM_FI_DEV_FB_USED{gpu=\"\xff\"} 1\n").is_err_and(|why| why.to_string().contains("UTF-8")));
}

#[test]
fn old_labels_and_escapes_are_read() {
    let page = "DCGM_FI_DEV_FB_USED { gpu=\"0\", uuid=\"GPU-a\", modelName=\"a \\\"b\\\\c}\" , } 5\n\
                DCGM_FI_DEV_FB_FREE{gpu=\"0\",UUID=\"GPU-a\"} 7\n";
    let [gpu] = read(page).expect("a page").gpus.try_into().expect("one GPU");
    assert_eq!((gpu.uuid.as_str(), gpu.memory.map(|memory| memory.total)), ("GPU-a", Ok(mib(12))));
    let [gpu] = read(page.lines().next().unwrap()).expect("a page").gpus.try_into().expect("one GPU");
    assert_eq!(gpu.product, "a \"b\\c}");
}

proptest! {
    /// The oracle is the amounts that the page was made of, and a reading in one piece.
    #[test]
    fn a_page_means_the_same_in_whatever_pieces_it_arrives(
        amounts in prop::collection::vec((0_u64..80_000, 1_u64..80_000, prop::option::of(0_u64..600)), 1..9),
        cuts in prop::collection::vec(0_usize..4_000, 0..12),
        pods in 0_usize..3,
    ) {
        let mut page = String::new();
        for (gpu, (used, free, reserved)) in (0..).zip(&amounts) {
            let values = [("USED", Some(*used)), ("FREE", Some(*free)), ("RESERVED", *reserved)];
            for (metric, value) in values.into_iter().filter_map(|(metric, value)| Some((metric, value?))) {
                page += &line(metric, gpu, HOST, &value.to_string());
                for pod in 0..pods {
                    page += &line(metric, gpu, &format!(",pod=\"p{pod}\""), &(value / 2).to_string());
                }
            }
        }
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut < page.len()).collect();
        cuts.sort_unstable();
        let (mut scan, mut start) = (Scan::default(), 0);
        for cut in cuts.into_iter().chain([page.len()]) {
            scan.feed(&page.as_bytes()[start..cut]).unwrap();
            start = cut;
        }
        let in_pieces = scan.finish().unwrap();
        let expected: Vec<_> = amounts
            .iter()
            .map(|(used, free, reserved)| Ok(GpuMemory {
                total: mib(used + free + reserved.unwrap_or(0)), reserved: reserved.map(mib), used: mib(*used),
            }))
            .collect();
        prop_assert_eq!(in_pieces.gpus.iter().map(|gpu| gpu.memory.clone()).collect::<Vec<_>>(), expected);
        prop_assert_eq!(read(&page).unwrap(), in_pieces);
    }

    #[test]
    fn no_text_panics(text in "(DCGM_FI_DEV_FB_(USED|FREE)[{}a-zA-Z0-9=\"\\\\, .\u{e9}-]{0,80}\n){0,4}") {
        let _ = read(&text);
    }
}
