# bash completion for ferry(1). All that can come next is known to ferry itself.
_ferry()
{
    local line word
    local -a words=()
    local current=${COMP_WORDS[COMP_CWORD]}
    local count=$((COMP_CWORD - 1))

    # "--host=DIR" and "127.0.0.1:7001" are several words to bash; join them again.
    if declare -F _get_comp_words_by_ref >/dev/null; then
        local cword
        _get_comp_words_by_ref -n =: -c current -w words -i cword
        words=("${words[@]:1:cword}")
    else
        words=("${COMP_WORDS[@]:1:count}" "$current")
    fi

    COMPREPLY=()
    while IFS= read -r line; do
        if [[ $line == :files ]]; then
            compopt -o filenames 2>/dev/null
            while IFS= read -r word; do
                COMPREPLY+=("$word")
            done < <(compgen -f -- "$current")
        else
            COMPREPLY+=("${line%%$'\t'*}")
        fi
    done < <("${COMP_WORDS[0]}" __complete "${words[@]}" 2>/dev/null)
    if declare -F __ltrim_colon_completions >/dev/null; then
        __ltrim_colon_completions "$current"
    fi
}
complete -F _ferry ferry
