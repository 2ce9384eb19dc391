//! Packs upstream's descriptions of types and fields, as the `k8s-openapi` crate carries them, into one
//! compressed file. Does nothing without the feature `descriptions`.

#[cfg(feature = "descriptions")]
#[rustfmt::skip]
#[expect(clippy::too_many_lines, reason = "generated, one line a type")]
mod roots;

fn main() {
    #[cfg(feature = "descriptions")]
    descriptions::write();
}

#[cfg(feature = "descriptions")]
mod descriptions {
    use std::collections::BTreeMap;
    use std::io::Write as _;
    use std::path::PathBuf;

    use flate2::Compression;
    use flate2::write::DeflateEncoder;
    use k8s_openapi::schemars::SchemaGenerator;
    use k8s_openapi::schemars::generate::SchemaSettings;

    /// Definition name to field name to description; the empty field is the type itself.
    type Descriptions = BTreeMap<String, BTreeMap<String, String>>;

    pub(super) fn write() {
        let mut generator = SchemaGenerator::new(SchemaSettings::openapi3());
        super::roots::describe(&mut generator);
        let mut all = Descriptions::new();
        for (name, schema) in generator.definitions() {
            let mut texts = BTreeMap::new();
            let mut add = |field: &str, text: Option<&str>| {
                if let Some(text) = text.filter(|text| !text.is_empty()) {
                    texts.insert(field.to_owned(), text.to_owned());
                }
            };
            add("", schema["description"].as_str());
            for (field, property) in schema["properties"].as_object().into_iter().flatten() {
                add(field, property["description"].as_str());
            }
            all.insert(name.clone(), texts);
        }
        let json = serde_json::to_vec(&all).expect("texts are JSON");
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&json).expect("memory can be written");
        let packed = encoder.finish().expect("memory can be written");
        let directory = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        std::fs::write(directory.join("descriptions"), packed).expect("OUT_DIR can be written");
    }
}
