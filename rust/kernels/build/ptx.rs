//! What NVRTC writes and no kernel needs.

use std::collections::HashMap;

/// The PTX without comments, and without variables that nothing names. Those are constants that the compiler has already
/// put in where they are used: of classes, and of the headers that it brings along. The assembler would make symbols of
/// them, a quarter of a module's machine code.
pub fn without_unused(ptx: &str) -> String {
    let mut uses: HashMap<&str, u32> = HashMap::new();
    for name in ptx.split(|character: char| !is_of_a_name(character)) {
        *uses.entry(name).or_default() += 1;
    }
    let is_needed =
        |line: &&str| !line.trim_start().starts_with("//") && variable(line).is_none_or(|name| uses[name] > 1);
    ptx.lines().filter(is_needed).flat_map(|line| [line, "\n"]).collect()
}

/// The variable that a line declares in a module's scope.
fn variable(line: &str) -> Option<&str> {
    let declaration = line.strip_suffix(';').filter(|line| line.starts_with(".global "))?;
    let (declared, _) = declaration.split_once('=').unwrap_or((declaration, ""));
    let (declared, _) = declared.split_once('[').unwrap_or((declared, ""));
    declared.split_whitespace().last()
}

fn is_of_a_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_' || character == '$'
}
