//! The documents as the source of attributes: what is visible in them, without what the collective keeps for itself.

use super::Source;
use crate::proto::document::{Ahead, Documents, Entity, PRESENT};
use crate::proto::name::{GroupName, NodeName};

/// Both are asked the same way: what shows, and what will show.
macro_rules! source {
    ($documents:ty) => {
        impl Source for $documents {
            fn node_exists(&self, node: &NodeName) -> bool {
                self.get(&Entity::Node(node.clone()), PRESENT).is_some()
            }

            fn group_exists(&self, group: &GroupName) -> bool {
                self.get(&Entity::Group(group.clone()), PRESENT).is_some()
            }

            fn node_attribute(&self, node: &NodeName, attribute: &str) -> Option<&str> {
                self.get(&Entity::Node(node.clone()), attribute)
            }

            fn group_attribute(&self, group: &GroupName, attribute: &str) -> Option<&str> {
                self.get(&Entity::Group(group.clone()), attribute)
            }

            fn node_attributes<'a>(&'a self, node: &NodeName) -> Box<dyn Iterator<Item = (&'a str, &'a str)> + 'a> {
                Box::new(self.entity(&Entity::Node(node.clone())).into_iter().flatten())
            }

            fn group_attributes<'a>(&'a self, group: &GroupName) -> Box<dyn Iterator<Item = (&'a str, &'a str)> + 'a> {
                Box::new(self.entity(&Entity::Group(group.clone())).into_iter().flatten())
            }

            fn nodes<'a>(&'a self) -> Box<dyn Iterator<Item = &'a NodeName> + 'a> {
                Box::new(<$documents>::nodes(self))
            }

            fn groups<'a>(&'a self) -> Box<dyn Iterator<Item = &'a GroupName> + 'a> {
                Box::new(<$documents>::groups(self))
            }
        }
    };
}

source!(Documents);
source!(Ahead<'_>);
