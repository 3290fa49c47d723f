//! Word lists for made-up people. Names are common ones put together at
//! random; phone numbers are from ranges reserved for fiction, e-mail domains
//! from those reserved for examples (RFC 2606).

/// A name as its owner writes it, and in plain letters for addresses.
pub(super) type Name = (&'static str, &'static str);

pub(super) const GIVEN: [Name; 32] = [
    ("Amara", "amara"),
    ("Björn", "bjorn"),
    ("Chloé", "chloe"),
    ("Dmitri", "dmitri"),
    ("Elif", "elif"),
    ("Femi", "femi"),
    ("Grace", "grace"),
    ("Hiroshi", "hiroshi"),
    ("İpek", "ipek"),
    ("José", "jose"),
    ("Kavita", "kavita"),
    ("Lucía", "lucia"),
    ("Małgorzata", "malgorzata"),
    ("Nguyệt", "nguyet"),
    ("Oluwaseun", "oluwaseun"),
    ("Priya", "priya"),
    ("Quentin", "quentin"),
    ("Ruth", "ruth"),
    ("Søren", "soren"),
    ("Tariq", "tariq"),
    ("Ulrike", "ulrike"),
    ("Vasilisa", "vasilisa"),
    ("Wanjiru", "wanjiru"),
    ("Ximena", "ximena"),
    ("Yusuf", "yusuf"),
    ("Zoë", "zoe"),
    ("李娜", "lina"),
    ("さくら", "sakura"),
    ("민준", "minjun"),
    ("Ольга", "olga"),
    ("ليلى", "layla"),
    ("Ελένη", "eleni"),
];

pub(super) const FAMILY: [Name; 32] = [
    ("Abdullahi", "abdullahi"),
    ("Andersson", "andersson"),
    ("Bianchi", "bianchi"),
    ("Chukwu", "chukwu"),
    ("de la Cruz", "delacruz"),
    ("Dubois", "dubois"),
    ("Eriksen", "eriksen"),
    ("Fernández", "fernandez"),
    ("García Márquez", "garciamarquez"),
    ("Haddad", "haddad"),
    ("Ivanova", "ivanova"),
    ("Jóhannsdóttir", "johannsdottir"),
    ("Kamau", "kamau"),
    ("Kowalczyk", "kowalczyk"),
    ("Lindqvist", "lindqvist"),
    ("Mehta", "mehta"),
    ("Müller", "mueller"),
    ("Nakamura", "nakamura"),
    ("O'Brien", "obrien"),
    ("Okafor", "okafor"),
    ("Papadopoulos", "papadopoulos"),
    ("Quispe", "quispe"),
    ("Rahman", "rahman"),
    ("Şahin", "sahin"),
    ("Silva", "silva"),
    ("Smith", "smith"),
    ("Tanaka", "tanaka"),
    ("Thompson", "thompson"),
    ("van den Berg", "vandenberg"),
    ("Wójcik", "wojcik"),
    ("Yılmaz", "yilmaz"),
    ("Zhang", "zhang"),
];

/// City, region, postal code, country.
pub(super) const CITIES: [[&str; 4]; 14] = [
    ["Lagos", "Lagos", "101233", "Nigeria"],
    ["Göteborg", "", "411 04", "Sweden"],
    ["Montréal", "QC", "H2Y 1C6", "Canada"],
    ["München", "Bayern", "80331", "Germany"],
    ["Nairobi", "", "00100", "Kenya"],
    ["São Paulo", "SP", "01001-000", "Brazil"],
    ["Kraków", "", "31-005", "Poland"],
    ["Pune", "Maharashtra", "411001", "India"],
    ["大阪市", "大阪府", "530-0001", "Japan"],
    ["Portland", "OR", "97201", "USA"],
    ["Galway", "", "H91 E2K3", "Ireland"],
    ["İzmir", "", "35210", "Türkiye"],
    ["Leeds", "West Yorkshire", "LS1 4DY", "United Kingdom"],
    ["Wellington", "", "6011", "New Zealand"],
];

pub(super) const STREETS: [&str; 12] = [
    "Station Road",
    "Rue des Érables",
    "Lindenallee",
    "Harbour Street",
    "Calle Mayor",
    "Acacia Avenue",
    "Kungsgatan",
    "Market Square",
    "ul. Długa",
    "Moi Avenue",
    "Rua das Flores",
    "Mill Lane",
];

/// Prefix and number of final digits of ranges that reach nobody.
pub(super) const PHONE_RANGES: [(&str, usize); 6] = [
    ("+1-202-555-01", 2),
    ("+1-416-555-01", 2),
    ("+44 20 7946 0", 3),
    ("+44 1632 960", 3),
    ("+33 1 99 00 ", 4),
    ("+61 2 5550 ", 4),
];

pub(super) const DOMAINS: [&str; 3] = ["example.org", "example.com", "example.net"];

pub(super) const ORGANIZATIONS: [&str; 10] = [
    "Alder & Finch Ltd",
    "Borealis Instruments AB",
    "Cedar Street Clinic",
    "Delta Tiles, Inc.",
    "Evergreen School",
    "Fjord Logistics",
    "Granite Bank",
    "Heron Publishing",
    "Indigo Bakery",
    "Juniper Software",
];

pub(super) const TITLES: [&str; 10] = [
    "Accountant",
    "Baker",
    "Civil Engineer",
    "Dentist",
    "Editor",
    "Nurse",
    "Project Manager",
    "Research Assistant",
    "Software Developer",
    "Teacher",
];

pub(super) const SUMMARIES: [&str; 14] = [
    "Dentist appointment",
    "Team meeting",
    "Lunch with {}",
    "Call {} back",
    "Birthday of {}",
    "Parents' evening",
    "Project review, second part",
    "Train to {}",
    "Yoga class",
    "Dinner at {}'s",
    "Board meeting; bring the figures",
    "Car inspection",
    "Choir practice",
    "Interview: {}",
];

pub(super) const TASKS: [&str; 12] = [
    "Buy milk, bread and coffee",
    "Renew passport",
    "Pay the electricity bill",
    "Send slides to {}",
    "Water the plants",
    "Book tickets for {}",
    "Fix the bicycle",
    "Return library books",
    "Write to {}",
    "Order printer paper",
    "Clean the gutters",
    "Back up the laptop",
];

pub(super) const SENTENCES: [&str; 20] = [
    "Met at the conference in spring; works on tidal power.",
    "Prefers to be called in the afternoon.",
    "Allergic to nuts, so choose the restaurant with care.",
    "The spare key is with the neighbour on the second floor.",
    "Ask about the garden, the new puppy and the trip to Crete.",
    "Please bring the signed papers and a copy of the receipt.",
    "We agreed to share the costs: half now, half in June.",
    "The old number no longer works.",
    "Plays the cello in the town orchestra.",
    "Moved here in 2019 and knows everybody by now.",
    "Take the tram to the last stop, then walk ten minutes uphill.",
    "Has two children, Noor and Émile, in the same class as ours.",
    "The recipe needs 250 g of butter, not 150.",
    "Send the draft first, comments will come within a week.",
    "The meeting room has moved to building C (ask at the desk).",
    "Remember the birthday present – something small is fine.",
    "Speaks Portuguese, English and a little Finnish.",
    "The projector wants an HDMI cable; the adapter is in the drawer.",
    "Returned the ladder on Sunday.",
    "Invoice no. 1047 is still open.",
];
