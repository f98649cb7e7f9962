"""Image-text-to-text models of transformers that no family trains, with the reason."""

_NO_TALK = {
    "pi0": "it moves a robot, its outputs are actions",
    "udop": "it reads documents as words with their boxes, and its processor wants those",
    "pp_formulanet": "its processor takes a picture of a formula and no text",
    "pp_chart2table": "its processor takes a picture of a chart and writes the prompt itself",
    "pix2struct": "its processor draws the prompt into the picture",
    "got_ocr2": "its processor writes the prompt itself, and it has no chat template",
    "evolla": "it reads proteins",
    "vision-encoder-decoder": "it has no processor that joins text and pictures",
    "shieldgemma2": "it answers two words about a policy, and its processor writes the prompt itself",
    "diffusion_gemma": "it writes blocks by diffusion, not word after word",
    "mistral4": "it reads no pictures",
    "kosmos-2": "its processor marks regions of pictures in its own way",
    "kosmos-2.5": "its processor cuts pictures into flattened patches for two fixed prompts",
    "idefics": "its pictures go in through cross attention, not as tokens",
    "mllama": "its pictures go in through cross attention, not as tokens",
    "fuyu": "it has no image tower",
    "chameleon": "its pictures are words of a picture vocabulary, made by another model inside it",
    "emu3": "its pictures are words of a picture vocabulary, made by another model inside it",
    "janus": "it draws pictures too, with half of its parts",
    "instructblipvideo": "it reads videos",
    "llava_next_video": "it reads videos",
    "video_llama_3": "it reads videos",
    "video_llava": "it reads videos",
}

_NOT_DESCRIBED = "where its parts are and how its pictures are batched is not described yet"

_OTHERS = """
aria cohere_compass cosmos3_edge cosmos3_omni deepseek_ocr2 deepseek_vl deepseek_vl_hybrid dots3_note
ernie4_5_vl_moe fast_vlm gemma3n gemma4 gemma4_unified glm4v_moe glm5_next glm_ocr glmga granite4_vision
granite_docling hunyuan_vl hyperclovax_vision_v2 idefics2 inkling2 inkling_mm_model kimi_k25 lfm2_vl lfm3_vl
lighton_ocr llama4 minicpm_ocr minicpmv4_6 minicpmv4_7 minimax_m3_vl mistral_large4 molmo2 muse_glimmer muse_spark
nemotron_h_omni ovis2 paddleocr_vl perception_lm qianfan_ocr qwen2_5_omni_thinker qwen3_5 qwen3_5_moe
qwen3_omni_moe_thinker qwen3_vl_moe qwen4_exp step3p7 t5gemma2 unlimited_ocr
"""

REFUSED = {**_NO_TALK, **dict.fromkeys(_OTHERS.split(), _NOT_DESCRIBED)}
"""Model type -> why it is not trained."""
