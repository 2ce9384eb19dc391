//! Rows of the groups `storage.k8s.io` and `resource.k8s.io`.

use serde_json::{Value, json};

use super::{Printer, count, items, joined, text, text_or};

const DEFAULT_CLASS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

impl Printer<'_> {
    pub(super) fn storage(&self, resource: &str) -> Option<Vec<Value>> {
        let (object, spec, status) = (self.object, self.spec(), self.status());
        Some(match resource {
            "csidrivers" => self.csi_driver(),
            "csinodes" => vec![self.name(), json!(count(&spec["drivers"])), self.age()],
            "deviceclasses" | "resourceclaimtemplates" => vec![self.name(), self.age()],
            "resourceclaims" => vec![self.name(), json!(self.claim_state()), self.age()],
            "resourceslices" => vec![
                self.name(),
                json!(text(&spec["nodeName"])),
                json!(text(&spec["driver"])),
                json!(text(&spec["pool"]["name"])),
                self.age(),
            ],
            "storageclasses" => self.storage_class(),
            "volumeattachments" => vec![
                self.name(),
                json!(text(&spec["attacher"])),
                json!(text(&spec["source"]["persistentVolumeName"])),
                json!(text(&spec["nodeName"])),
                json!(status["attached"] == true),
                self.age(),
            ],
            "volumeattributesclasses" => vec![self.name(), json!(text(&object["driverName"])), self.age()],
            _ => return None,
        })
    }

    fn csi_driver(&self) -> Vec<Value> {
        let spec = self.spec();
        let flag = |field: &str, otherwise: bool| json!(spec[field].as_bool().unwrap_or(otherwise));
        let requests =
            joined(items(&spec["tokenRequests"]).iter().map(|request| text(&request["audience"])), ",");
        let modes = joined(items(&spec["volumeLifecycleModes"]).iter().map(text), ",");
        vec![
            self.name(),
            flag("attachRequired", true),
            flag("podInfoOnMount", false),
            flag("storageCapacity", false),
            json!(if spec["tokenRequests"].is_null() { "<unset>" } else { &requests }),
            flag("requiresRepublish", false),
            json!(if modes.is_empty() { "<none>" } else { &modes }),
            self.age(),
        ]
    }

    fn storage_class(&self) -> Vec<Value> {
        let object = self.object;
        let annotations = &object["metadata"]["annotations"];
        let mut name = text(&object["metadata"]["name"]).to_owned();
        if DEFAULT_CLASS.iter().any(|annotation| annotations[annotation] == "true") {
            name.push_str(" (default)");
        }
        vec![
            json!(name),
            json!(text(&object["provisioner"])),
            json!(text_or(&object["reclaimPolicy"], "Delete")),
            json!(text_or(&object["volumeBindingMode"], "Immediate")),
            json!(object["allowVolumeExpansion"] == true),
            self.age(),
        ]
    }

    fn claim_state(&self) -> String {
        let status = self.status();
        let allocated = status["allocation"].is_object();
        let states = [
            ("deleted", self.deleting()),
            ("pending", !allocated && !self.deleting()),
            ("allocated", allocated),
            ("reserved", allocated && count(&status["reservedFor"]) > 0),
        ];
        joined(states.into_iter().filter(|(_, holds)| *holds).map(|(state, _)| state), ",")
    }
}
